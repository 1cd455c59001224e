"""Progress on standard error: a live picture on a terminal, one line for each phase in a log."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from virtfn.api.progress import Progress, plain_progress, render_progress

__all__ = ["Watcher"]


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
