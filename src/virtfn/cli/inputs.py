"""What commands take: a lab's file, or a lab that is up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from virtfn.cli.outputs import STDOUT

if TYPE_CHECKING:
    from virtfn.api.lab import Lab

__all__ = ["lab_of", "lab_option"]

_Command = TypeVar("_Command", bound=Callable[..., None])


def lab_option(command: _Command) -> _Command:
    """Give a command its --lab NAME."""
    return click.option("--lab", metavar="NAME", help="The lab that is up; not needed if there is only one.")(command)


def lab_of(file: str | None) -> Lab:
    """Read a lab from its file, or from standard input for `-`; without one, it is the built-in lab.

    Raises LabError for the first thing wrong in it.
    """
    from virtfn.api.lab import builtin_lab, load_lab, read_lab

    if file == STDOUT:
        return read_lab(sys.stdin.buffer)
    return builtin_lab() if file is None else load_lab(Path(file))
