"""Long work in pieces: a generator that yields where others may have their turn, and returns what came of it."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

__all__ = ["InPieces", "finish"]

T = TypeVar("T")
InPieces: TypeAlias = Generator[None, None, T]


def finish(pieces: InPieces[T]) -> T:
    """Do all of it at once; return what came of it."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result
