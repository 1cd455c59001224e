"""What the line budget counts, and that it fails when it must."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "line_budget.py"


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    spec = importlib.util.spec_from_file_location("line_budget", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("", 0),
        ('"""Module.\n\nText.\n"""\n\n# reason\n', 0),
        ("x = 1  # why\n\n\ny = 2\n", 2),
        ('def f():\n    """Do."""\n    return (\n        1,\n\n        2,\n    )\n', 5),
        ('TEXT = """one\ntwo\n"""\n', 3),
    ],
)
def test_code_lines_are_neither_blank_nor_comment_nor_docstring(budget: ModuleType, source: str, lines: int) -> None:
    assert budget.code_lines(source) == lines


def test_floors_over_budget_or_without_one_are_named(budget: ModuleType, tmp_path: Path) -> None:
    for floor in ("hw", "attic"):
        (tmp_path / floor).mkdir()
        (tmp_path / floor / "a.py").write_text("x = 1\ny = 2\n")
    for name in ("__init__.py", "door.py", "py.typed"):
        (tmp_path / name).write_text("x = 1\n")
    floors = budget.count_floors(tmp_path)
    assert floors == {"attic": 2, "door.py": 1, "hw": 2}
    lines, wrong = budget.report(floors, {"hw": 2, "door.py": 1})
    assert wrong == ["attic has no budget; give it one in tools/line_budget.py"]
    assert len(lines) == 4
    assert budget.report({"hw": 3}, {"hw": 2})[1] == ["hw has 3 lines of code, 1 over its budget of 2"]


def test_every_floor_of_the_tree_has_a_budget(budget: ModuleType) -> None:
    assert set(budget.count_floors(budget.ROOT)) <= set(budget.BUDGETS)
