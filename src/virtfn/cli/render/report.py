"""The reports of a run and of a bench."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from virtfn.api.frames import TRAFFIC
from virtfn.api.report import AttackReport, BenchReport, FlowReport, GuestReport, Report, verdict
from virtfn.cli.render.table import Listing, facts

__all__ = ["render_bench", "render_report"]


def render_report(report: Report) -> RenderableType:
    """Lay the report out for a person."""
    judged = verdict(report)
    word = Text("passed ", style="bold green") if judged.passed else Text("FAILED ", style="bold red")
    return Group(
        Text.assemble(("lab ", "dim"), (report["lab"], "bold")),
        Text(""),
        _guest_table(report["guests"]),
        Text(""),
        *_linux(report["guests"]),
        *_host_vfs(report["flows"]),
        *_attacks(report.get("attacks", [])),
        _facts(report),
        Text(""),
        *(Text(words, style="bold red") for words in report.get("unwritten", [])),
        *(Text(words, style="yellow") for words in report.get("notes", [])),
        word + Text(judged.words, style="not bold"),
    )


def _guest_table(guests: list[GuestReport]) -> Listing:
    counts = ("sent", "received", "lost", "corrupt", "reord.", "drops", "exits", "irqs")
    table = Listing("guest", "function", right=counts)
    for g in guests:
        table.add_row(
            g["name"],
            Text(g["address"], style="dim"),
            _number(g["tx_frames"]),
            _number(g["rx_frames"]),
            *(_number(n, bad=True) for n in (g["lost"], g["corrupt"], g["reordered"])),
            _number(sum(g["dropped"].values()), worth_a_look=True),
            _number(g["exits"]),
            _number(g["interrupts"]),
        )
    return table


_OUTCOMES = {"stopped": "green", "harmless": "green", "succeeded": "bold red"}


def _attacks(attacks: list[AttackReport]) -> list[RenderableType]:
    """Lay out what was attempted: what became of it, what stopped it, and what it does without remapping."""
    if not attacks:
        return []
    table = Listing("attempt", "outcome", "stopped by", "without remapping", prose=("stopped by",))
    for a in attacks:
        bare = a["without_remapping"]
        table.add_row(
            a["name"],
            Text(a["outcome"], style=_OUTCOMES[a["outcome"]]),
            Text(a["stopped_by"], style="dim"),
            Text("the same", style="dim") if bare is None else Text(bare["outcome"]),
        )
    return [table, Text("")]


def _linux(guests: list[GuestReport]) -> list[RenderableType]:
    """Lay out what only guests under QEMU have."""
    linux = [g for g in guests if g["vmm"] == "qemu"]
    if not linux:
        return []
    table = Listing("Linux", "I/O", right=("booted in", "ping", "iperf3 sends", "exits a frame"))
    for g in linux:
        table.add_row(
            g["name"],
            f"{g['io']}, {_plural(g['vfs'], 'VF')}" if "vfs" in g else g["io"],
            "-" if (boot_s := g["boot_s"]) is None else f"{boot_s:.1f} s",
            f"{g['ping_ms']:.2f} ms" if "ping_ms" in g and "vfs" not in g else "-",  # of VFs: each has its own
            f"{g['iperf_mbps']:.0f} Mb/s" if "iperf_mbps" in g and "vfs" not in g else "-",
            "-" if "self_test" in g or "exits_per_frame" not in g else f"{g['exits_per_frame']:.2f}",
        )
    tests = [
        Text(f"{g['name']}: self-test of {'its link' if g['io'] == 'sriov' else 'the card'} {g['self_test']}")
        for g in linux
        if "self_test" in g
    ]
    return [table, *tests, Text("")]


def _host_vfs(flows: list[FlowReport]) -> list[RenderableType]:
    """Lay out what VFs that hosts have made sent to each other, and under which policies."""
    vfs = [flow for flow in flows if "policy" in flow]
    if not vfs:
        return []
    table = Listing("VF", "to", "set by its host", right=("answered", "ping", "iperf3"), prose=("set by its host",))
    for flow in vfs:
        table.add_row(
            flow["sender"],
            flow["receiver"],
            Text(flow["policy"], style="dim"),
            f"{_count(flow['heard'])} of {_count(flow['sent'])}",
            f"{flow['ping_ms']:.2f} ms" if "ping_ms" in flow else "-",
            f"{flow['iperf_mbps']:.0f} Mb/s" if "iperf_mbps" in flow else "-",
        )
    return [table, Text("")]


def _facts(report: Report) -> Table:
    table = facts()
    for pf in report["pfs"]:
        table.add_row(pf["name"], f"{pf['model']} at {pf['address']}, {_plural(pf['vfs'], 'VF')}")
        switch = pf["switch"]
        words = f"{_count(switch['forwarded'])} forwarded, {_count(switch['flooded'])} flooded"
        table.add_row("  switch", f"{words}, {_drops(switch['dropped'])}")
        if "link_mbps" in pf:
            table.add_row("  link", f"{pf['link_mbps']} Mb/s on the wire; frames between VFs do not take it")
        if uplink := pf.get("uplink"):
            events = "".join(f", {_count(n)} {name}" for name, n in uplink["events"].items())
            table.add_row("  uplink", ("up" if uplink["up"] else "down") + events)
    for g in report["guests"]:
        if any(g["dropped"].values()):
            table.add_row(f"  {g['name']}", _drops(g["dropped"]))
    pings = [
        f"{g['name']} {1000 * g['ping_ms']:.1f} us"
        for g in report["guests"]
        if "ping_ms" in g and g["vmm"] == "embedded"
    ]
    if pings:
        table.add_row("ping", f"mean round trip: {', '.join(pings)}")
    mmu = report["iommu"]
    hits = f", {100 * mmu['iotlb_hits'] / mmu['translations']:.1f} % by the IOTLB" if mmu["translations"] else ""
    table.add_row(
        "IOMMU",
        f"{_plural(mmu['domains'], 'domain')}, {_count(mmu['translations'])} translations{hits}, "
        f"{_plural(mmu['page_walks'], 'page walk')}, {_plural(mmu['faults'], 'fault')}",
    )
    if "device_tlb_hits" in mmu:
        asked = f"{_count(mmu['translation_requests'])} translation requests"
        table.add_row("device TLBs", f"{_count(mmu['device_tlb_hits'])} hits, {asked}")
    _rates(report, table)
    return table


def _rates(report: Report, table: Table) -> None:
    """Add what was moved, how fast, and in which time."""
    sums = report["totals"]
    moving = f"{sums['moving_s']:.3f} s"
    rates = f"{sums['mpps']:.2f} Mpps, {sums['gbps']:.2f} Gb/s"
    table.add_row("total", f"{_count(sums['frames'])} frames, {_bytes(sums['bytes'])} in {moving}: {rates}")
    each = [f"{g['name']} {g['rx_mpps']:.2f} Mpps, {g['rx_gbps']:.2f} Gb/s" for g in report["guests"] if _has_rate(g)]
    if each:
        table.add_row("received", "; ".join(each))
    compiled = f", kernels compiled in {report['compile_s']:.1f} s" if report["compile_s"] >= 0.05 else ""
    whole = f"{report['elapsed_s']:.2f} s in all{compiled}"
    table.add_row("time", f"{moving} moving frames, {whole}; sizes without check sequences")


def _has_rate(guest: GuestReport) -> bool:
    return "rx_mpps" in guest and guest["rx_frames"] > 0


_NOT_IN_IT = "not in it: making and reading frames, interrupts, the wire"


def render_bench(report: BenchReport) -> RenderableType:
    """Lay a bench report out for a person."""
    table = Listing("traffic", right=("frame bytes", "VFs", "Mpps", "Gb/s", "copy Gb/s", "of copy"))
    for p in report["points"]:
        copy = report["copy_gbps"].get(str(p["frame_bytes"]))
        table.add_row(
            p["traffic"],
            str(p["frame_bytes"]),
            str(p["vfs"]),
            Text(f"{p['mpps']:.2f}", style="bold"),
            f"{p['gbps']:.2f}",
            Text("-" if copy is None else f"{copy:.2f}", style="dim"),
            f"{100 * p['copy_ratio']:.0f} %",
        )
    names = dict.fromkeys(p["traffic"] for p in report["points"])
    notes = [
        *(f"{name:<10} {TRAFFIC[name].words}" for name in names),
        "",
        _NOT_IN_IT,
        "frame bytes are with frame check sequence, Gb/s without; imix has their mean",
        "of copy: the rate against a plain copy of the same frames, on this core",
    ]
    head = f"{report['cpu']}, one core; VF 0 to others, through both drivers, switch and IOMMU"
    return Group(Text(head, style="dim"), Text(""), table, Text(""), *(Text(note, style="dim") for note in notes))


def _count(number: int) -> str:
    return f"{number:,}"


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _number(number: int, *, bad: bool = False, worth_a_look: bool = False) -> Text:
    style = "bold red" if bad and number else "yellow" if worth_a_look and number else "dim" if not number else ""
    return Text(_count(number), style=style)


def _drops(dropped: dict[str, int]) -> str:
    counted = {reason: n for reason, n in dropped.items() if n}
    if not counted:
        return "0 dropped"
    return f"{_count(sum(counted.values()))} dropped: " + ", ".join(
        f"{_count(n)} {r}" for r, n in sorted(counted.items())
    )


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
