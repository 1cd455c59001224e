"""The live screen of `virtfn top`: a table that is written anew at each look, and keys that order it.

q  end    r s v d i x  what comes first    p  rest, and go on    arrows, page keys, mouse  move
"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static
from textual.worker import get_current_worker

from virtfn.api.rates import Rates, ask_snapshot, compare
from virtfn.api.session.snapshot import Snapshot
from virtfn.cli.render.top import COLUMNS, SORTS, cells, heading, ordered
from virtfn.machine.ports import VirtfnError

__all__ = ["Top"]

_GONE_LOOKS = 5


class Top(App[str]):
    """The screen. lab: its name; delay: seconds between two looks; count: of looks, None: until q.

    What it returns is why it ended, if the lab was never there; else nothing.
    """

    CSS = "#head { height: auto; padding: 0 1; } DataTable { height: 1fr; }"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "End"),
        Binding("r", "sort('rate')", "By rate"),
        Binding("s", "sort('sent')", "Sent"),
        Binding("v", "sort('received')", "Received"),
        Binding("d", "sort('drops')", "Drops"),
        Binding("i", "sort('irqs')", "Interrupts"),
        Binding("x", "sort('exits')", "Exits"),
        Binding("p", "rest", "Rest"),
    ]

    def __init__(self, lab: str, delay: float = 1.0, count: int | None = None, sort: str = "rate") -> None:
        super().__init__()
        self._lab, self._delay, self._left, self._sort = lab, delay, count, sort
        self._before: Snapshot | None = None
        self._rates: Rates | None = None
        self._resting = False
        self._missed = 0

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield Static(f"{self._lab}: looking", id="head", markup=False)
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        table = self.query_one(DataTable)
        for title in COLUMNS:
            table.add_column(Text(title, justify="left" if title in COLUMNS[:2] else "right"), key=title)
        table.focus()
        self._look()
        self.set_interval(self._delay, self._look)

    def _look(self) -> None:
        if not self._resting:
            self.run_worker(self._ask, thread=True, exclusive=True, group="look")

    def _ask(self) -> None:
        """Ask the lab, in a thread: it may take its time, and keys are heard meanwhile."""
        worker = get_current_worker()
        try:
            snapshot: Snapshot | VirtfnError = ask_snapshot(self._lab)
        except VirtfnError as error:
            snapshot = error
        if not worker.is_cancelled:
            self.call_from_thread(self._take, snapshot)

    def _take(self, snapshot: Snapshot | VirtfnError) -> None:
        """Show what the lab has said."""
        if isinstance(snapshot, VirtfnError):
            self._missed += 1
            self.query_one("#head", Static).update(f"{snapshot}; waiting for it")
            if self._left is not None and self._missed >= _GONE_LOOKS:
                self.exit(str(snapshot))
            return
        self._missed = 0
        before, self._before = self._before, snapshot
        if before is None:
            return
        self._rates = compare(before, snapshot)
        self._show()
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self.exit()

    def _show(self) -> None:
        if self._rates is None:
            return
        words = "; resting, p goes on" if self._resting else ""
        head = f"{heading(self._rates)}\nfirst: most {SORTS[self._sort][0]}{words}"
        self.query_one("#head", Static).update(head)
        table = self.query_one(DataTable)
        row, across, down = table.cursor_row, table.scroll_x, table.scroll_y
        table.clear()
        for each in ordered(self._rates, self._sort):
            table.add_row(*cells(each), key=f"{each['function']} {each['guest']}")
        table.move_cursor(row=row, animate=False, scroll=False)
        table.scroll_to(across, down, animate=False)

    def action_sort(self, what: str) -> None:
        """Let rows with the most of something come first."""
        self._sort = what
        self._show()

    def action_rest(self) -> None:
        """Look no more, or go on."""
        self._resting = not self._resting
        self._show()
