"""What docs/uplinks.md says of labs: each of examples/uplinks is in a recipe, and each kind of uplink has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guest.recipes import PAGE, read_recipes
from virtfn.api.lab import load_lab, refuse_unsupported

LABS = sorted((PAGE.parents[1] / "examples" / "uplinks").glob("*.yaml"))
TYPED = [line for lines in read_recipes(PAGE.read_text(encoding="utf-8")).values() for _, _, line in lines]
RUN = {found[1] for line in TYPED if (found := re.match(r"virtfn run (\S+)", line))}


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_a_lab_of_the_page_is_one(path: Path) -> None:
    lab = load_lab(path)
    refuse_unsupported(lab)
    assert lab.name == path.stem
    assert path.name in RUN


def test_each_kind_of_uplink_has_a_recipe() -> None:
    folder = PAGE.parents[1] / "examples" / "uplinks"
    uplinks = {re.sub(r"[^:]+$", "", f":{pf.uplink}") for name in RUN for pf in load_lab(folder / name).pfs}
    assert uplinks == {":", ":pcap:", ":tap:", ":stream:", ":stream:listen:"}


def test_lines_go_to_their_terminals() -> None:
    text = (
        "# Page\n\n## One\n\nWords.\n\n    1$ virtfn run \\\n        lab.yaml\n    2# ip link\n\n## Two\n\nNo recipe.\n"
    )
    assert read_recipes(text) == {"One": [(1, "$", "virtfn run lab.yaml"), (2, "#", "ip link")]}
