"""Work in steps, so that others may be served between them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

_Result = TypeVar("_Result")
Steps: TypeAlias = Generator[None, None, _Result]
"""Work that can rest at each `yield`."""
Going: TypeAlias = Callable[[], bool]
"""Asked between steps: whether there is time for another one."""


def finish(steps: Steps[None] | None) -> None:
    """Do all steps, now."""
    for _ in steps or ():
        pass
