"""What `docs/explain` says of the code: files that it names exist, and so do the functions; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "virtfn"
PAGES = sorted((ROOT / "docs" / "explain").glob("*.md"))
PLACES = (SOURCE, SOURCE / "kernels", ROOT)
WORDS = {
    word
    for folder in (SOURCE, ROOT / "tests", ROOT / "tools")
    for path in folder.rglob("*.py")
    for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
}


def spans(page: Path) -> list[str]:
    """List what a page sets in code letters, in its sentences."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("    ")]
    return re.findall(r"`([^`]+)`", "\n".join(lines))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    files = {span for span in spans(page) if re.fullmatch(r"[\w./-]+/[\w./-]+", span)}
    assert {name for name in files if not any((place / name).exists() for place in PLACES)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_uses_are_in_the_code(page: Path) -> None:
    names = {part for span in spans(page) if re.fullmatch(r"[A-Za-z_][\w.]*", span) for part in span.split(".")}
    files = {"md", "py"}
    assert {name for name in names if name not in WORDS} - files - {"SPECIFICATION", "CHANGELOG"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
