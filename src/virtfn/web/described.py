"""The types of documents as pydantic can describe them: before Python 3.12 it cannot read `typing.TypedDict`."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from typing_extensions import TypedDict

__all__ = ["described"]


@cache
def described(kind: Any) -> Any:
    """Make the same type of parts that pydantic reads."""
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        made = TypedDict(kind.__name__, {key: described(hint) for key, hint in hints.items()})  # type: ignore[misc]
        made.__doc__ = kind.__doc__
        return made
    origin, parts = get_origin(kind), get_args(kind)
    if origin is None or origin is Literal:
        return kind
    parts = tuple(described(part) for part in parts)
    return Union[parts] if isinstance(kind, type(int | str)) else origin[parts if len(parts) > 1 else parts[0]]  # noqa: UP007
