"""What the survey says of the four models, held against the numbers of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from virtfn.api.comparison import Comparison, ModelResult, Property, Throttle

__all__ = ["properties"]

NO_EXITS = 0.05
"""Exits for each frame that still count as none: what is left is interrupts' masks."""


def properties(runs: Sequence[Comparison], throttle: Sequence[Throttle]) -> list[Property]:
    """Judge each property by the runs, of few guests first, and the throttle's; those without numbers are left out."""
    few, many = runs[0], runs[-1]
    return [
        *_split(few["models"]["split"], many["models"]["split"], few["guests"], many["guests"]),
        *_direct(few["models"]["direct"], many["models"]["direct"], few["guests"], many["guests"]),
        *_no_vmm(few["models"]["passthrough"], many["models"]["sriov"]),
        *_sharing(runs),
        *_order(few),
        *_interrupts(throttle),
    ]


def _made(name: str, holds: bool, words: str, *, timed: bool = False) -> Property:
    return {"name": name, "holds": bool(holds), "words": words, "timed": timed}


def _split(one: ModelResult, many: ModelResult, few: int, most: int) -> Iterator[Property]:
    copies, moved = many["per_frame"]["copies"], many["per_frame"]["bytes_copied"]
    yield _made(
        "split-copies",
        copies >= 0.9,
        f"Split copies: {copies:.2f} copies and {moved:.0f} bytes for each frame, in Dom0",
    )
    yield from _bottleneck("split-dom0-bottleneck", "Dom0", "Split", one, many, few, most)


def _direct(one: ModelResult, many: ModelResult, few: int, most: int) -> Iterator[Property]:
    loads = [load["per_frame"]["exits"] for load in one["loads"]]
    exits = loads[0] if loads else one["per_frame"]["exits"]
    yield _made(
        "direct-exits",
        exits > NO_EXITS and one["per_frame"]["exits"] > 0,
        f"Direct traps at each register access: {exits:.2f} exits for each frame at a low load, "
        f"{one['per_frame']['exits']:.3f} in bursts",
        timed=True,
    )
    yield from _bottleneck("direct-vmm-bottleneck", "the VMM", "Direct", one, many, few, most)


def _bottleneck(
    name: str, who: str, model: str, one: ModelResult, many: ModelResult, few: int, most: int
) -> Iterator[Property]:
    """Judge whether who works for all guests is what they wait for."""
    core = many["priced"]["core_mpps"]
    if most > few and core is not None:
        growth = many["measured"]["mpps"] / max(one["measured"]["mpps"], 1e-9)
        yield _made(
            name,
            growth < 0.75 * most / few,
            f"{who} is the bottleneck of {model}: {most} guests move {growth:.2f} times the frames of {few}; one "
            f"processor of {who} serves {core:.2f} million frames a second, for all guests together",
            timed=True,
        )


def _no_vmm(passthrough: ModelResult, sriov: ModelResult) -> Iterator[Property]:
    for name, result in (("passthrough", passthrough), ("sriov", sriov)):
        if result["refused"]:
            continue
        frame = result["per_frame"]
        quiet = frame["exits"] < NO_EXITS and not frame["copies"] and not frame["notifications"]
        yield _made(
            f"{name}-no-vmm",
            quiet,
            f"no VMM on the data path of {name}: {frame['exits']:.4f} exits, {frame['copies']:g} copies for each frame",
        )


def _sharing(runs: Sequence[Comparison]) -> Iterator[Property]:
    one = runs[0]["models"]
    several = [run for run in runs if run["guests"] > 1]
    if several:
        refused = [run["guests"] for run in several if run["models"]["passthrough"]["refused"]]
        yield _made(
            "passthrough-one-guest", len(refused) == len(several), "Passthrough serves one guest, and refuses a second"
        )
        last = several[-1]
        sriov = last["models"]["sriov"]
        if sriov["refused"] is None and one["passthrough"]["refused"] is None:
            cost, alone = sriov["priced"]["cycles"], one["passthrough"]["priced"]["cycles"]
            yield _made(
                "sriov-cost-of-passthrough",
                cost <= alone + 5,
                f"SR-IOV serves {last['guests']} guests at the cost of Passthrough: {cost:.1f} cycles for each frame, "
                f"{alone:.1f} for one guest's",
            )
            first, few = one["sriov"]["priced"], runs[0]["guests"]
            yield _made(
                "sriov-host-load",
                cost <= first["cycles"] + 5,
                f"the host's load does not grow with guests that have VFs: {first['cycles']:.1f} cycles for each frame "
                f"with {few}, {cost:.1f} with {last['guests']}; what is left is interrupts",
            )


def _order(run: Comparison) -> Iterator[Property]:
    """Judge who costs more, at a load where nobody hides behind bursts."""
    cost: Callable[[str], float] = lambda name: run["models"][name]["loads"][0]["cycles"]  # noqa: E731
    if all(run["models"][name]["loads"] for name in run["models"]):
        split, direct, passthrough, sriov = (cost(name) for name in ("split", "direct", "passthrough", "sriov"))
        fps = run["models"]["split"]["loads"][0]["fps"]
        yield _made(
            "order-of-costs",
            max(passthrough, sriov) < split and max(passthrough, sriov) < direct,
            f"at {fps:,} frames a second of each guest each way, a frame costs {passthrough:.0f} cycles by "
            f"Passthrough, {sriov:.0f} by SR-IOV, {split:.0f} by Split, {direct:.0f} by Direct",
        )
    driver = {name: result["guest_driver"] for name, result in run["models"].items()}
    if not driver["passthrough"]:
        return
    yield _made(
        "guest-driver",
        driver["direct"] == driver["passthrough"] != driver["split"],
        f"Split needs a changed guest, with a front end ({driver['split']}); Direct and Passthrough run the NIC's own "
        f"driver ({driver['direct']}), SR-IOV the VF's ({driver['sriov']})",
    )


def _interrupts(throttle: Sequence[Throttle]) -> Iterator[Property]:
    most = max((point["fps"] for point in throttle), default=0)
    fixed = sorted(
        (point["interval_us"], point["interrupts"], point["injected_cycles"])
        for point in throttle
        if point["fps"] == most and point["interval_us"] is not None
    )
    if len(fixed) > 1:
        (low, many, dear), (high, few, cheap) = fixed[0], fixed[-1]
        yield _made(
            "moderation",
            few < many and cheap < dear,
            f"moderation saves interrupts: at {most:,} frames a second, {many:,} with {low} us between two, {few:,} "
            f"with {high}; injected ones cost {dear:.0f} and {cheap:.0f} cycles for each frame",
            timed=True,
        )
