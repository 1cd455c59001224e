"""Tables in terminals of all widths."""

from __future__ import annotations

import pytest
from rich.text import Text

from unit.cli.render.text import text
from virtfn.cli.render.table import Listing, facts


def lines(listing: Listing, width: int) -> list[str]:
    return [line.rstrip() for line in text(listing, width).splitlines() if "─" not in line]


def guests() -> Listing:
    listing = Listing("name", "in words", right=("sent now", "received"), prose=("in words",))
    listing.add_row("a", Text("the first of all"), "1,000,000", "2")
    listing.add_row("bob", "another", "3", Text("4,000,000"))
    return listing


def test_with_enough_room_nothing_is_broken() -> None:
    wide = [
        "name  in words           sent now   received",
        "a     the first of all  1,000,000          2",
        "bob   another                   3  4,000,000",
    ]
    assert lines(guests(), 200) == wide
    assert lines(guests(), len(wide[1])) == wide


def test_with_less_prose_and_titles_are_broken_between_words() -> None:
    assert lines(guests(), 37) == [
        "name  in words    sent now   received",
        "a     the first  1,000,000          2",
        "      of all",
        "bob   another            3  4,000,000",
    ]


def test_with_still_less_columns_come_closer() -> None:
    assert lines(guests(), 32) == [
        "     in",
        "name words    sent now  received",
        "a    the     1,000,000         2",
        "     first",
        "     of all",
        "bob  another         3 4,000,000",
    ]


def test_with_too_little_columns_come_below() -> None:
    assert lines(guests(), 24) == [
        "      in",
        "name  words     sent now",
        "a     the      1,000,000",
        "      first",
        "      of all",
        "bob   another          3",
        "",
        "name   received",
        "a             2",
        "bob   4,000,000",
    ]


@pytest.mark.parametrize("width", range(5, 60))
def test_no_width_cuts_anything(width: int) -> None:
    shown = text(guests(), width)
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= width
    if width >= 15:  # a name and a number
        assert {"name", "sent", "now", "received", "a", "bob", "another", "1,000,000", "4,000,000"} <= set(
            shown.split()
        )


def test_a_table_without_rows() -> None:
    assert lines(Listing("name", right=("sent",)), 80) == ["name  sent"]


def test_facts_are_broken_between_words() -> None:
    table = facts()
    table.add_row("IOMMU", "2 domains, 4 page walks")
    assert [line.split() for line in text(table, 22).splitlines()] == [
        ["IOMMU", "2", "domains,", "4"],
        ["page", "walks"],
    ]
