"""JSON in pieces: each is made by the compiled encoder in a fraction of a millisecond, whatever the whole is.

Lists are cut; what is in them, and in objects, may again be cut, unless it is small. A text is never cut.
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
    if _is_small(document) or not isinstance(document, dict | list):
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
            if all(map(_is_small, some)):
                yield before + json.dumps(some, allow_nan=False)[1:-1]
                before = ", "
                continue
            for item in some:
                yield before
                yield from _parts(item)
                before = ", "
        yield "]"


def _is_small(value: object) -> bool:
    """Tell whether a value holds not much, with all that is in what it holds."""
    return _left(value, _AT_ONCE) >= 0


def _left(value: object, room: int) -> int:
    """Count what a value holds, until there is no room for more; return what is left of that."""
    if not isinstance(value, dict | list | tuple):
        return room
    room -= len(value)
    items = value.values() if isinstance(value, dict) else value
    if room < 0 or _CONTAINERS.isdisjoint(map(type, items)):
        return room
    for item in items:
        if type(item) in _CONTAINERS:
            room = _left(item, room)
            if room < 0:
                break
    return room
