"""Progress on standard error: a live picture on a terminal, one line for each phase in a log."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from virtfn.api.progress import Progress

__all__ = ["Watcher", "plain_progress", "render_progress"]


class Watcher:
    """Shows progress while it is open. quiet: say nothing where there is no terminal."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._phase = ""
        self._spinner = Spinner("line", style="green")
        self._live = Live(console=console, transient=True, refresh_per_second=8) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def rest(self) -> None:
        """Show no picture from now on: something else is shown; phases still have their lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, progress: Progress) -> None:
        """Show a moment of the run."""
        if self._live is not None:
            self._live.update(self._turning(render_progress(progress)))
        elif not self._quiet and progress.phase != self._phase:
            self._console.print(plain_progress(progress), markup=False, highlight=False, soft_wrap=True)
        self._phase = progress.phase

    def _turning(self, picture: RenderableType) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        row.add_row(self._spinner, picture)
        return row


def render_progress(progress: Progress) -> RenderableType:
    """Lay a moment of a run out: one line for the run, one for each guest."""
    # A time that stands still would look like a hang.
    elapsed = f"  {progress.elapsed_s:.1f} s" if progress.elapsed_s >= 0.1 else ""
    head = Text.assemble((progress.phase, "bold"), elapsed)
    if progress.total_steps:
        head.append_text(_bar(progress.steps / progress.total_steps))
        head.append(f"  {progress.steps} of {progress.total_steps}")
    elif progress.total_frames:
        head.append_text(_bar(progress.frames / progress.total_frames))
    if progress.frames:
        head.append(f"  {progress.frames:,} frames, {progress.mpps:.2f} Mpps, {progress.gbps:.2f} Gb/s")
    lines = Table.grid(padding=(0, 2))
    for name, tx, rx, dropped in progress.guests:
        late = Text(f"dropped {dropped:,}", style="yellow") if dropped else Text("")
        lines.add_row(Text(f"  {name}"), Text(f"sent {tx:,}"), Text(f"received {rx:,}"), late)
    return Group(head, *([lines] if progress.guests else []))


def _bar(share: float) -> Text:
    share = min(1.0, share)
    full = round(24 * share)
    return Text.assemble("  ", ("=" * full, "green"), ("-" * (24 - full), "dim"), f" {100 * share:3.0f} %")


def plain_progress(progress: Progress) -> str:
    """Say a moment of a run in a line for a log."""
    share = f" {progress.frames} of {progress.total_frames} frames" if progress.total_frames and progress.frames else ""
    return f"{progress.phase}{share}"
