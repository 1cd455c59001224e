"""JSON in pieces is the JSON that the encoder makes at once, and no piece is long."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtfn.api.encoding import encode

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=40
)


@given(documents)
def test_any_document(document: object) -> None:
    assert "".join(encode(document)) == json.dumps(document)


@given(documents, st.integers(1, 200))
def test_long_lists(document: object, times: int) -> None:
    assert "".join(encode([document] * times)) == json.dumps([document] * times)


def test_pieces_are_short() -> None:
    row = {"iova": 1 << 40, "bytes": 4096, "read": True, "write": False}
    document = {"domains": [{"id": n, "mappings": [row] * 1000, "rids": ["0000:01:10.0"] * 1000} for n in range(20)]}
    pieces = list(encode(document))
    assert json.loads("".join(pieces)) == document
    assert max(map(len, pieces)) < 12_000


@pytest.mark.parametrize("odd", [object(), float("nan"), {"a": [1, {"b": float("inf")}]}, [[object()]]])
def test_what_is_not_json_is_an_error(odd: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        list(encode(odd))
