"""Tables that show every value whole, however narrow the terminal.

name  sent  received    enough room
a      100       100

name sent received      little: titles and prose are broken between words, then columns come closer
a     100      100

name  sent              too little: the columns that are left over come below, led by the first again
a      100

name  received
a          100
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["Listing", "facts"]

_PROSE_CELLS = 16
"""A column of prose is not made narrower than this for the sake of others, unless its words are all shorter."""


@dataclass(slots=True)
class _Column:
    title: str
    right: bool
    prose: bool
    cells: list[Text] = field(default_factory=list)

    @property
    def narrowest(self) -> int:
        """The width that breaks titles and prose between words alone, and no other cell."""
        widths = [cell_len(word) for word in self.title.split()]
        for cell in self.cells:
            if self.prose:
                widths += [min(cell_len(word), _PROSE_CELLS) for word in cell.plain.split()]
            else:
                widths.append(cell.cell_len)
        return max(widths, default=0)

    @property
    def widest(self) -> int:
        """The width that breaks nothing."""
        return max([cell_len(self.title), *(cell.cell_len for cell in self.cells)])


class Listing:
    """Rows under titles; the first column says what a row is about.

    right: titles of more columns, set to the right, as numbers are. prose: titles of columns whose cells may be broken
    between words.
    """

    def __init__(self, *titles: str, right: Sequence[str] = (), prose: Sequence[str] = ()) -> None:
        self._columns = [_Column(title, title in right, title in prose) for title in (*titles, *right)]

    def add_row(self, *cells: str | Text) -> None:
        """Add a row, a cell for each column."""
        for column, cell in zip(self._columns, cells, strict=True):
            column.cells.append(Text(cell) if isinstance(cell, str) else cell)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        gaps = 2 * (len(self._columns) - 1)
        return Measurement(1, sum(column.widest for column in self._columns) + gaps)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        room = options.max_width
        gap, pieces = 2, self._pieces(room, 2)
        if len(pieces) > 1 == len(closer := self._pieces(room, 1)):
            gap, pieces = 1, closer
        for number, piece in enumerate(pieces):
            if number:
                yield Text("")
            yield _lay_out(piece, room, gap)

    def _pieces(self, room: int, gap: int) -> list[list[_Column]]:
        first, *others = self._columns
        pieces, used = [[first]], first.narrowest
        for column in others:
            if used + gap + column.narrowest > room and len(pieces[-1]) > 1:
                pieces.append([first])
                used = first.narrowest
            pieces[-1].append(column)
            used += gap + column.narrowest
        return pieces


def _lay_out(columns: list[_Column], room: int, gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    spare = room - sum(column.narrowest for column in columns) - gap * (len(columns) - 1)
    for column in columns:
        width = None  # no room for two columns: both are broken anywhere
        if spare >= 0:
            width = min(column.widest, column.narrowest + spare)
            spare -= width - column.narrowest
        table.add_column(column.title, width=width, overflow="fold", justify="right" if column.right else "left")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def facts() -> Table:
    """Make a table of two columns, names and what is to say of them; broken between words."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    return table
