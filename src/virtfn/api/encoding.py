"""JSON in pieces: each is made by the compiled encoder in a fraction of a millisecond, whatever the whole is.

Lists are cut; what is in them, and in objects, may again be cut. A text is never cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

__all__ = ["encode"]

_AT_ONCE = 64
_PIECE = 1 << 12  # characters, about
_CONTAINERS = {dict, list, tuple}


def encode(document: object) -> Iterator[str]:
    """Yield the JSON of `document` in pieces.

    Raises TypeError or ValueError, where it is reached, for what JSON cannot hold.
    """
    held: list[str] = []
    size = 0
    for part in _parts(document):
        held.append(part)
        size += len(part)
        if size >= _PIECE:
            yield "".join(held)
            held.clear()
            size = 0
    yield "".join(held)


def _parts(document: object) -> Iterator[str]:
    if _is_flat(document) or not isinstance(document, dict | list):
        yield json.dumps(document, allow_nan=False)
    elif isinstance(document, dict):
        before = "{"
        for key, value in document.items():
            yield f"{before}{json.dumps(str(key))}: "
            yield from _parts(value)
            before = ", "
        yield "}"
    else:
        before = "["
        for first in range(0, len(document), _AT_ONCE):
            some = document[first : first + _AT_ONCE]
            if all(_is_flat(item) for item in some):
                yield before + json.dumps(some, allow_nan=False)[1:-1]
                before = ", "
                continue
            for item in some:
                yield before
                yield from _parts(item)
                before = ", "
        yield "]"


def _is_flat(value: object) -> bool:
    """Tell whether a value is small: it holds nothing that holds anything, and not much of that."""
    if isinstance(value, dict):
        return len(value) <= _AT_ONCE and _CONTAINERS.isdisjoint(map(type, value.values()))
    if isinstance(value, list | tuple):
        return len(value) <= _AT_ONCE and _CONTAINERS.isdisjoint(map(type, value))
    return True
