"""What kernels may touch: the other half of the checked build.

    data      arrays of this process, and scratch areas: as long as they live           `address_of`
    rows      state rows: only as the row that they are, by `row_at`                    `row_address`
    machine   the machine's memory: only what a gate has let through in this call      `machine_memory`, `grant`

So an access is compared with what the IOMMU gave to a requester, not with the memory as a whole: one that walks from a
guest's ring into another guest's page is found, although both are memory. Tables that the unit itself reads are let
through by its walker, entry by entry. The latest 4,096 grants are remembered, until the next call of the data plane.

In an ordinary build nothing is kept, and the addresses are just returned. Spec: none; `docs/explain/security.md`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from virtfn.kernels import stray
from virtfn.kernels._jit import grant, kernel, symbol, uncached
from virtfn.kernels._jit import load64_unchecked as _load
from virtfn.kernels._jit import store64_unchecked as _store
from virtfn.kernels.stray import CHECKED, DATA_RANGES, MACHINE_RANGES, ROW_RANGES, Kind, StrayAccessError

__all__ = [
    "StrayAccessError",
    "address_of",
    "forget_memory",
    "machine_memory",
    "machine_memory_of",
    "raw_memory",
    "row_address",
    "start_call",
]

_kept: dict[int, set[tuple[Kind, int, int, str]]] = {}  # by the identity of the array that owns the memory
_gone: deque[tuple[Kind, int, int, str]] = deque()  # of memory that was let go
_changing = threading.Lock()


def _change(kind: Kind, first: int, size: int, name: str, *, add: bool) -> None:
    with _changing:
        (kind.add if add else kind.remove)(first, size, name)
    _sweep()


def _keep(kind: Kind, array: npt.NDArray[Any], name: str) -> None:
    # What lives as long as the memory is the array that owns it, at the end of the views.
    owner: Any = array
    above: Any = array
    while isinstance(above.base, np.ndarray | np.void):
        above = above.base
        owner = above if isinstance(above, np.ndarray) else owner
    entry = kind, int(array.ctypes.data), array.nbytes, name
    if id(owner) not in _kept:
        _kept[id(owner)] = set()
        weakref.finalize(owner, _let_go, id(owner))
    if entry not in _kept[id(owner)]:
        _kept[id(owner)].add(entry)
        _change(*entry, add=True)


def _let_go(owner: int) -> None:
    # The collector comes at any moment, in any thread, in the midst of a change too: who changes sweeps after it.
    _gone.extend(_kept.pop(owner))
    _sweep()


def _sweep() -> None:
    while _gone and _changing.acquire(blocking=False):
        try:
            kind, first, size, name = _gone.popleft()
            kind.remove(first, size, name)
        except IndexError:  # another thread took it
            pass
        finally:
            _changing.release()


def address_of(array: npt.NDArray[Any], name: str = "an array") -> int:
    """Return the address of an array whose bytes kernels may touch, as long as its memory lives."""
    if CHECKED and array.nbytes:
        _keep(DATA_RANGES, array, name)
    return int(array.ctypes.data)


def row_address(rows: npt.NDArray[np.void], name: str = "a row") -> int:
    """Return the address of an array of rows, which kernels may see by `row_at`, as long as its memory lives."""
    if CHECKED and rows.nbytes:
        _keep(ROW_RANGES, rows, name)
    return int(rows.ctypes.data)


def machine_memory_of(array: npt.NDArray[Any], name: str) -> int:
    """Return the address of an array that counts as the machine's memory, as long as its memory lives."""
    if CHECKED:
        _keep(MACHINE_RANGES, array, name)
    return int(array.ctypes.data)


def machine_memory(first: int, size: int, name: str) -> None:
    """Let kernels touch what gates let through of `size` bytes at `first`, until `forget_memory`."""
    if CHECKED:
        _change(MACHINE_RANGES, first, size, name, add=True)


def raw_memory(first: int, size: int, name: str) -> None:
    """Let kernels touch `size` bytes at `first`, which no array owns, until `forget_memory`."""
    if CHECKED:
        _change(DATA_RANGES, first, size, name, add=True)


def forget_memory(first: int, size: int, name: str) -> None:
    """Take back what `machine_memory` or `raw_memory` said."""
    if CHECKED:
        kind = MACHINE_RANGES if MACHINE_RANGES.holds(first, size, name) else DATA_RANGES
        _change(kind, first, size, name, add=False)


def _within(kind: int, address: int, size: int) -> int:
    """Find the range of a kind that holds `size` bytes at `address`: its first address, or -1."""
    at = _load(stray.TABLE + kind * 8)
    low = 0
    high = _load(at)
    while low < high:
        middle = (low + high) >> 1
        if _load(at + (1 + 2 * middle) * 8) <= address:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return -1
    first = _load(at + (2 * low - 1) * 8)
    end = _load(at + 2 * low * 8)
    return first if size <= end - address else -1


def _stray(address: int, size: int, write: int) -> int:
    _store(stray.TABLE + stray.ADDRESS * 8, address)
    _store(stray.TABLE + stray.SIZE * 8, size)
    _store(stray.TABLE + stray.WRITE * 8, write)
    return 0


def _may_touch(address: int, size: int, write: int) -> int:
    """Tell whether `size` bytes at `address` may be read, or written."""
    if size < 0:
        return _stray(address, size, write)
    if size == 0 or _within(stray.DATA, address, size) >= 0:
        return 1
    if _within(stray.MACHINE, address, size) < 0:
        return _stray(address, size, write)
    newest = _load(stray.TABLE + stray.GRANTED * 8)
    for i in range(newest - 1, max(newest - stray.GRANTS, 0) - 1, -1):
        at = stray.TABLE + (stray.GRANTS_AT + i % stray.GRANTS * stray.GRANT_WORDS) * 8
        if _load(at) <= address and size <= _load(at + 8) - address and write <= _load(at + 16):
            return 1
    return _stray(address, size, write)


def _is_row(address: int, size: int) -> int:
    """Tell whether there is a row of `size` bytes at `address`."""
    first = _within(stray.ROWS, address, size)
    return 1 if first >= 0 and (address - first) % size == 0 else _stray(address, size, 2)


def _remember(address: int, size: int, write: int, rid: int) -> int:
    """Remember what a gate let through; nothing if `size` is 0. A negative size forgets all."""
    newest = _load(stray.TABLE + stray.GRANTED * 8)
    if size < 0:
        _store(stray.TABLE + stray.GRANTED * 8, 0)
    elif size > 0:
        at = stray.TABLE + (stray.GRANTS_AT + newest % stray.GRANTS * stray.GRANT_WORDS) * 8
        _store(at, address)
        _store(at + 8, address + size)
        _store(at + 16, write)
        _store(at + 24, rid)
        _store(stray.TABLE + stray.GRANTED * 8, newest + 1)
    return 1


@kernel
def start_call() -> None:
    """Forget what gates let through: a new call of the data plane begins."""
    grant(0, -1, 0, 0)


if CHECKED:
    _within, _stray = uncached(_within), uncached(_stray)
    _symbols = (
        symbol("virtfn_may_touch", _may_touch, 3),
        symbol("virtfn_is_row", _is_row, 2),
        symbol("virtfn_grant", _remember, 4),
    )
