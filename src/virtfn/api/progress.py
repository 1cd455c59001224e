"""What a run says while it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["OnProgress", "Progress", "plain_progress", "render_progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run. phase: what goes on, in words. guests: (name, tx_frames, rx_frames, dropped) of each guest."""

    phase: str
    elapsed_s: float = 0.0
    frames: int = 0
    total_frames: int = 0
    mpps: float = 0.0
    gbps: float = 0.0
    guests: tuple[tuple[str, int, int, int], ...] = ()


OnProgress = Callable[[Progress], None]


def render_progress(progress: Progress) -> RenderableType:
    """Lay a moment of a run out: one line for the run, one for each guest."""
    # Nothing reports while kernels compile; a time that stands still would look like a hang.
    elapsed = f"  {progress.elapsed_s:.1f} s" if progress.elapsed_s >= 0.1 else ""
    head = Text.assemble((_phase(progress), "bold"), elapsed)
    if progress.total_frames:
        share = min(1.0, progress.frames / progress.total_frames)
        full = round(24 * share)
        head.append_text(
            Text.assemble("  ", ("=" * full, "green"), ("-" * (24 - full), "dim"), f" {100 * share:3.0f} %")
        )
    if progress.frames:
        head.append(f"  {progress.frames:,} frames, {progress.mpps:.2f} Mpps, {progress.gbps:.2f} Gb/s")
    lines = Table.grid(padding=(0, 2))
    for name, tx, rx, dropped in progress.guests:
        late = Text(f"dropped {dropped:,}", style="yellow") if dropped else Text("")
        lines.add_row(Text(f"  {name}"), Text(f"sent {tx:,}"), Text(f"received {rx:,}"), late)
    return Group(head, *([lines] if progress.guests else []))


def plain_progress(progress: Progress) -> str:
    """Say a moment of a run in a line for a log."""
    share = f" {progress.frames} of {progress.total_frames} frames" if progress.total_frames and progress.frames else ""
    return f"{_phase(progress)}{share}"


def _phase(progress: Progress) -> str:
    return "compiling kernels (first run only)" if progress.phase == "compiling" else progress.phase
