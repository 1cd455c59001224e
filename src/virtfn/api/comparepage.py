"""The page of a comparison: one HTML file with plots, for a browser without a network."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from virtfn import private
from virtfn.api.comparison import Comparison, ModelResult
from virtfn.machine.ports import VirtfnError

__all__ = ["make_page", "require_plots", "write_page"]

_COLOURS = {"split": "#b4552d", "direct": "#8a6d00", "passthrough": "#4a6fa5", "sriov": "#2e7d4f"}
_NAMES = {"split": "Split", "direct": "Direct", "passthrough": "Passthrough", "sriov": "SR-IOV"}
_CAUSE_COLOURS = ("#b4552d", "#d98f5c", "#8a6d00", "#4a6fa5", "#7fa8d1", "#2e7d4f", "#82b894", "#8d8d8d", "#4d4d4d")
_STYLE = """
:root { color-scheme: light; --ink: #1d2329; --quiet: #5a646e; --line: #d8dde2; --ground: #ffffff; --soft: #f4f6f8; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p, li { max-width: 46rem; } .quiet { color: var(--quiet); }
figure { margin: .8rem 0; } figure svg { width: 100%; height: auto; }
figcaption { color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--soft); }
td.words { white-space: normal; text-align: left; min-width: 22rem; }
.holds { color: #1f6b3f; } .fails { color: #a1260d; }
"""


def require_plots() -> None:
    """Look for the library that draws, before there is something to draw. Raises VirtfnError (ENOSYS) without it."""
    if find_spec("matplotlib") is None:
        raise VirtfnError("the page's plots need Matplotlib: pip install 'virtfn[plots]'", errno_name="ENOSYS")


def write_page(document: Comparison, path: Path | None) -> None:
    """Write the page to a file; `-`: to standard output.

    Raises VirtfnError if the disk refuses, or the library that draws is not there.
    """
    page = make_page(document)
    if path is None or str(path) == "-":
        sys.stdout.write(page)
        return
    try:
        with open(path, "w", encoding="utf-8", opener=private.opener) as file:
            file.write(page)
    except OSError as error:
        raise VirtfnError(f"{path}: cannot be written ({error.strerror})") from None


def make_page(document: Comparison) -> str:
    """Make the page. Raises VirtfnError (ENOSYS) without the library that draws."""
    figures = _Figures(document)
    parts = [
        "<h1>What an I/O model costs, shares and isolates</h1>",
        f"<p class=quiet>virtfn {html.escape(document['virtfn'])} on {html.escape(document['cpu'])}. In each model "
        f"{html.escape(document['workload'])}, {document['frame_bytes']} bytes each; all over one kind of NIC.</p>",
        "<h2>The answer</h2>",
        _answer(document),
        "<h2>Measured on this machine</h2>",
        "<p>Wall-clock rates and delays of this run, of models that are all software here: compare them with each "
        "other, not with hardware.</p>",
        figures.rates(),
        figures.delays(),
        _measured(document),
        "<h2>Counted</h2>",
        "<p>Events for each frame delivered, of all guests and of who serves them. At full rate both sides poll, and "
        "bursts hide what a single frame costs; at lower loads it shows.</p>",
        _counted(document),
        *([figures.loads()] if document["runs"][0]["models"]["sriov"]["loads"] else []),
        "<h2>Priced</h2>",
        "<p>The counts times published cycles of each event. Bands are the lowest and highest published prices. "
        "Nothing here is measured.</p>",
        figures.causes(),
        figures.scaling(),
        _prices(document),
    ]
    if document["throttle"]:
        parts += [
            "<h2>Interrupts of a VF</h2>",
            "<p>Frames for each interrupt by the least time between two, and what interrupts cost if the VMM injects "
            "them or the hardware posts them. By traffic: the driver chooses.</p>",
            _throttle(document),
        ]
    body = "\n".join(parts)
    return (
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>virtfn: four I/O models compared</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _answer(document: Comparison) -> str:
    lines = [
        f"<li><span class={'holds' if held['holds'] else 'fails'}>{'holds' if held['holds'] else 'does not hold'}:"
        f"</span> {html.escape(held['words'])}.</li>"
        for held in document["properties"]
    ]
    lines += [
        f"<li>{_NAMES[name]} is refused with {document['guests']} guests: {html.escape(result['refused'])}.</li>"
        for name, result in document["models"].items()
        if result["refused"]
    ]
    isolation = (
        "Who keeps guests apart: in Split, checks of software in Dom0; in Direct, checks of the VMM; in Passthrough "
        "and SR-IOV, the IOMMU, by which a function reaches its own guest's memory alone, and the card's sorting."
    )
    return f"<ul>{''.join(lines)}</ul><p>{isolation}</p>"


def _table(titles: list[str], rows: list[list[str]], words: bool = False) -> str:
    head = "".join(f"<th scope=col>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td class=words>{html.escape(cell)}</td>"
            if words and i == len(row) - 1
            else f"<td>{html.escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _rows(document: Comparison) -> Iterator[tuple[str, ModelResult]]:
    for run in document["runs"]:
        for name, result in run["models"].items():
            yield f"{_NAMES[name]}, {run['guests']}", result


def _measured(document: Comparison) -> str:
    rows = []
    for name, result in _rows(document):
        if result["refused"]:
            rows.append([name, "refused", *[""] * 6])
            continue
        measured = result["measured"]
        rates = (_number(measured[key]) for key in ("mpps", "gbps"))
        delays = (f"{delay:,.0f}" for delay in measured["latency_us"].values())
        rows.append([name, f"{result['delivered']:,}", f"{result['lost'] + result['corrupt']:,}", *rates, *delays])
    return _table(["model, guests", "delivered", "lost", "Mpps", "Gb/s", "p50 µs", "p99 µs", "p99.9 µs"], rows)


def _counted(document: Comparison) -> str:
    keys = ("exits", "notifications", "guest_switches", "copies", "bytes_copied", "interrupts", "page_walks", "dma")
    rows = [
        [name, *(_number(result["per_frame"][key]) for key in keys)]  # type: ignore[literal-required]
        for name, result in _rows(document)
        if not result["refused"]
    ]
    return _table(["model, guests", *(key.replace("_", " ") for key in keys)], rows)


def _number(value: float) -> str:
    return "0" if not value else f"{value:.4f}" if value < 0.1 else f"{value:,.2f}"


def _prices(document: Comparison) -> str:
    rows = [
        [name, *(f"{float(price[key]):,.4g}" for key in ("cycles", "low", "high")), str(price["source"])]
        for name, price in document["prices"].items()
    ]
    return _table(["event", "cycles", "lowest", "highest", "source"], rows, words=True)


def _throttle(document: Comparison) -> str:
    rows = [
        [
            f"{point['fps']:,} frames/s",
            "by traffic" if point["interval_us"] is None else f"{point['interval_us']} µs",
            f"{point['interrupts']:,}",
            f"{point['frames_per_interrupt'] or 0:.1f}",
            f"{point['latency_us']['p50']:,.0f}",
            f"{point['latency_us']['p99']:,.0f}",
            f"{point['posted_cycles']:,.0f}",
            f"{point['injected_cycles']:,.0f}",
        ]
        for point in document["throttle"]
    ]
    titles = ["load", "interval", "interrupts", "frames each", "p50 µs", "p99 µs", "cycles, posted", "cycles, injected"]
    return _table(titles, rows)


class _Figures:
    """Plots as SVG, drawn with Matplotlib."""

    def __init__(self, document: Comparison) -> None:
        require_plots()
        import matplotlib

        matplotlib.use("svg")
        import matplotlib.pyplot as plt

        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none", "svg.hashsalt": "virtfn", "font.size": 10, "axes.spines.top": False,
                "axes.spines.right": False, "axes.grid": True, "grid.color": "#e3e7ea", "axes.axisbelow": True,
                "legend.frameon": False,
            }
        )  # fmt: skip
        self._plt: Any = plt
        self._document = document
        self._guests = [run["guests"] for run in document["runs"]]

    def _figure(self, figure: Any, name: str, words: str) -> str:
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        self._plt.close(figure)
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(words)}" ', 1)
        # Several drawings on one page: what they refer to has to be each one's own.
        for word in ('id="', 'href="#', "url(#"):
            svg = svg.replace(word, f"{word}{name}-")
        return f"<figure>{svg}<figcaption>{html.escape(words)}</figcaption></figure>"

    def _served(self, name: str) -> list[tuple[int, ModelResult]]:
        results = [(run["guests"], run["models"][name]) for run in self._document["runs"]]
        return [(n, result) for n, result in results if not result["refused"]]

    def rates(self) -> str:
        """Throughput by model and number of guests."""
        figure, axes = self._plt.subplots(figsize=(8, 3.2))
        width = 0.8 / len(_NAMES)
        for i, (name, title) in enumerate(_NAMES.items()):
            places = [self._guests.index(n) + (i - 1.5) * width for n, _ in self._served(name)]
            rates = [result["measured"]["mpps"] for _, result in self._served(name)]
            axes.bar(places, rates, width * 0.92, color=_COLOURS[name], label=title)
        axes.set_xticks(range(len(self._guests)), [str(n) for n in self._guests])
        axes.set_xlabel("guests")
        axes.set_ylabel("million frames a second")
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.18))
        return self._figure(figure, "rates", "Frames delivered by all guests together, in millions a second, measured.")

    def delays(self) -> str:
        """Latency by percentile, of the most guests that each model serves."""
        figure, axes = self._plt.subplots(figsize=(8, 3.2))
        for name, title in _NAMES.items():
            served = self._served(name)
            if not served:
                continue
            n, result = served[-1]
            curve = [(p, us) for p, us in result["measured"]["latency_curve"] if p < 100]
            axes.plot([100 / (100 - p) for p, _ in curve], [us for _, us in curve], color=_COLOURS[name],
                      marker="o", markersize=3, label=f"{title}, {n}")  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
        axes.set_xticks([100 / (100 - p) for p in ticks], [f"{p:g} %" for p in ticks])
        axes.minorticks_off()
        axes.set_xlabel("share of frames")
        axes.set_ylabel("µs at most")
        axes.legend()
        return self._figure(
            figure, "delays", "How long a frame is under way at full rate, by share of frames, measured."
        )

    def loads(self) -> str:
        """Exits, notifications and interrupts by load, of one guest."""
        kinds = ("exits", "notifications", "interrupts")
        figure, rows = self._plt.subplots(1, 3, figsize=(9, 2.8), sharex=True)
        run = self._document["runs"][0]
        served = {name: run["models"][name]["loads"] for name in _NAMES if run["models"][name]["loads"]}
        for axes, kind in zip(rows, kinds, strict=True):
            for name, loads in served.items():
                rates = [load["per_frame"][kind] for load in loads]  # type: ignore[literal-required]
                axes.plot([load["fps"] for load in loads], rates,
                          color=_COLOURS[name], marker="o", markersize=4, label=_NAMES[name])  # fmt: skip
            axes.set_xscale("log")
            ticks = [load["fps"] for load in served["sriov"]]
            axes.set_xticks(ticks, [f"{fps:,}" for fps in ticks])
            axes.minorticks_off()
            axes.set_title(kind, fontsize=10)
            axes.set_xlabel("frames a second")
        rows[0].set_ylabel("for each frame")
        rows[0].legend(fontsize=8)
        figure.tight_layout()
        guests = f"{run['guests']} guest" + ("s" if run["guests"] > 1 else "")
        return self._figure(figure, "loads", f"Events for each frame by load, {guests}, counted.")

    def causes(self) -> str:
        """Cost by cause, at the lowest load and at full rate, of the fewest guests."""
        run = self._document["runs"][0]
        names = [name for name in _NAMES if not run["models"][name]["refused"]]
        panels = [("at full rate", [run["models"][name]["priced"]["by_cause"] for name in names])]
        if several := all(run["models"][name]["loads"] for name in names):
            fps = run["models"][names[0]]["loads"][0]["fps"]
            costs = [run["models"][name]["loads"][0]["by_cause"] for name in names]
            panels.insert(0, (f"at {fps:,} frames a second", costs))
        figure, grid = self._plt.subplots(len(panels), 1, figsize=(8, 2.3 * len(panels)), squeeze=False)
        rows = [row[0] for row in grid]
        for axes, (title, costs) in zip(rows, panels, strict=True):
            left = [0.0] * len(names)
            for cause, colour in zip(costs[0], _CAUSE_COLOURS, strict=True):
                cycles = [each[cause] for each in costs]
                axes.barh([_NAMES[name] for name in names], cycles, left=left, color=colour, label=cause)
                left = [at + value for at, value in zip(left, cycles, strict=True)]
            axes.set_title(title if several else "", fontsize=10, loc="left")
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
        slow, fast = rows[0], rows[-1]
        for i, name in enumerate(names):
            priced = run["models"][name]["priced"]
            fast.plot([priced["low"], priced["high"]], [i, i], color="#1d2329", linewidth=1.2, marker="|")
        fast.set_xlabel("cycles for each frame; the line is the range of prices")
        slow.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        figure.tight_layout()
        return self._figure(figure, "causes", "What a frame costs, by cause, priced.")

    def scaling(self) -> str:
        """Cost by number of guests, at the lowest load, as bands."""
        figure, axes = self._plt.subplots(figsize=(8, 3.0))
        for name, title in _NAMES.items():
            served = self._served(name)
            guests = [n for n, _ in served]
            axes.plot(guests, [result["priced"]["cycles"] for _, result in served], color=_COLOURS[name], marker="o",
                      markersize=4, label=title)  # fmt: skip
            low, high = ([result["priced"][key] for _, result in served] for key in ("low", "high"))
            axes.fill_between(guests, low, high, color=_COLOURS[name], alpha=0.15, linewidth=0)
        axes.set_xticks(self._guests)
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("guests")
        axes.set_ylabel("cycles for each frame")
        axes.legend(fontsize=8)
        return self._figure(
            figure, "scaling", "What a frame costs by number of guests, at full rate; bands are the range of prices."
        )
