"""The check of the register reference: content with the tree, and not with a field that does nothing, or too much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from virtfn.hw.bits import Field, Register, Status, reg

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import check_fields  # noqa: E402


class SPEEDY(Register):
    """A register of this test."""

    FAST = Field(0)
    LOUD = Field(1, stored=True)
    RSV = Field(2, 2)


SPEED = reg(0, SPEEDY, status=Status.MODELLED)
MODEL = "def follow(written: int) -> bool:\n    value = SPEEDY(written)\n    return bool({asked})\n"


def said(tmp_path: Path, asked: str, test: str = "SPEEDY.of(FAST=1, RSV=1)") -> list[str]:
    model, tests = tmp_path / "model", tmp_path / "tests"
    for folder, text in ((model, MODEL.format(asked=asked)), (tests, test)):
        folder.mkdir()
        (folder / "x.py").write_text(text)
    return check_fields.complaints([SPEED], [model], [tests])


def test_the_tree_is_as_its_reference_says() -> None:
    result = subprocess.run([sys.executable, ROOT / "tools" / "check_fields.py"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("asked", ["value.FAST and value.RSV", "SPEEDY(written).FAST | value.replace(RSV=1).value"])
def test_fields_that_the_model_asks_for_are_modelled(tmp_path: Path, asked: str) -> None:
    assert said(tmp_path, asked) == []


def test_a_field_that_nobody_asks_for_is_not(tmp_path: Path) -> None:
    assert said(tmp_path, "value.FAST") == ["SPEEDY.RSV is called modelled, and the model does not name it"]


def test_a_field_that_acts_is_not_stored_only(tmp_path: Path) -> None:
    assert said(tmp_path, "value.FAST and value.RSV and value.LOUD") == [
        "SPEEDY.LOUD is marked as stored, and the model names it"
    ]


def test_a_field_of_the_same_name_in_another_register_does_not_count(tmp_path: Path) -> None:
    wrong = said(tmp_path, "OTHER(written).FAST and value.RSV")
    assert wrong == ["SPEEDY.FAST is called modelled, and the model does not name it"]


def test_a_field_without_a_test_is_told(tmp_path: Path) -> None:
    assert said(tmp_path, "value.FAST and value.RSV", "SPEEDY.of(FAST=1)") == [
        "SPEEDY.RSV does something, and no test names it"
    ]
