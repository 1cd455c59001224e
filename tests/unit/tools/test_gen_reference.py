"""The generated reference: fresh in the tree, honest about status, complete, and caught when stale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from virtfn.api import report
from virtfn.api.lab import schema
from virtfn.api.reportkeys import MEANINGS
from virtfn.hw.bits import Status
from virtfn.hw.i82576 import Regs, VfRegs

ROOT = Path(__file__).parents[3]
TOOL = ROOT / "tools" / "gen_reference.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference")
    result = run("--output", str(output))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    return output


@pytest.fixture
def document(folder: Path) -> Path:
    return folder / "registers.md"


@pytest.mark.parametrize("name", ["registers.md", "drops.md", "lab.md", "run-json.md"])
def test_the_committed_reference_is_fresh(folder: Path, name: str) -> None:
    committed = ROOT / "docs" / "reference" / name
    assert committed.read_text(encoding="utf-8") == (folder / name).read_text(encoding="utf-8"), "run `make docs`"


def test_check_passes_on_fresh_files_and_names_the_remedy_for_a_stale_or_missing_one(
    folder: Path, tmp_path: Path
) -> None:
    assert run("--check", "--output", str(folder)).returncode == 0
    fresh = (folder / "registers.md").read_text(encoding="utf-8")
    (tmp_path / "registers.md").write_text(fresh.replace("modelled", "absent", 1), encoding="utf-8")
    before = (tmp_path / "registers.md").read_bytes()
    result = run("--check", "--output", str(tmp_path))
    assert result.returncode == 1
    for name, state in (("registers.md", "out of date"), ("drops.md", "missing")):
        assert f"{name} is {state}: run `make docs`" in result.stderr
    assert (tmp_path / "registers.md").read_bytes() == before
    assert not (tmp_path / "drops.md").exists()


def test_every_key_of_a_lab_is_in_the_reference(folder: Path) -> None:
    text = (folder / "lab.md").read_text(encoding="utf-8")
    sections = [schema(), *schema()["$defs"].values()]
    for section in sections:
        for key in section["properties"]:
            assert f"| `{key}` |" in text


def test_every_key_of_a_report_has_a_meaning_and_a_unit_and_no_other_has() -> None:
    for name, meanings in MEANINGS.items():
        assert set(meanings) == set(getattr(report, name).__annotations__), name
        assert all(unit and meaning for unit, meaning in meanings.values())
    described = {name for name in report.__all__ if name.endswith(("Report", "Totals", "Comparison"))}
    assert described - {"BenchReport"} == set(MEANINGS)


def test_every_register_of_the_nic_is_in_it_with_its_status(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    for regmap in (Regs, VfRegs):
        for decl in regmap.DECLS:
            name = f"`{decl.name}[{decl.count}]`" if decl.is_array else f"`{decl.name}`"
            rows = [
                line.split(" | ") for line in lines if line.startswith(f"| {decl.offset:04x}") and f" {name} " in line
            ]
            assert any(row[4] == decl.status.value for row in rows), decl.name


def test_the_coverage_table_counts_what_the_map_declares(document: Path) -> None:
    counts = [sum(decl.status is status for decl in Regs.DECLS) for status in Status]
    row = " | ".join(str(number) for number in (len(Regs.DECLS), *counts))
    assert f"| 82576: physical function, BAR0 | {row} |" in document.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["registers.md", "drops.md", "lab.md"])
def test_no_cell_breaks_the_tables(folder: Path, name: str) -> None:
    width = 0
    for line in (folder / name).read_text(encoding="utf-8").splitlines():
        cells = line.replace("\\|", "").count("|")
        assert not line.startswith("|") or width in (0, cells), line
        width = cells if line.startswith("|") else 0
