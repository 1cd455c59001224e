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

import bisect
import threading
import weakref
from collections import Counter, deque
from typing import Any

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import CHECKED, grant, kernel, symbol, uncached
from virtfn.kernels._jit import load64_unchecked as _load
from virtfn.kernels._jit import store64_unchecked as _store

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

_GRANTS = 1 << 12
# Words of the table that the checks read: the address of each kind's ranges, how many grants; what went astray.
_DATA, _ROWS, _MACHINE, _GRANTED, _ADDRESS, _SIZE, _WRITE = range(7)
_GRANTS_AT = 8
_GRANT_WORDS = 4  # first, end, whether it may be written, requester
_table = np.zeros(_GRANTS_AT + _GRANT_WORDS * _GRANTS if CHECKED else _GRANTS_AT, np.int64)
_TABLE = int(_table.ctypes.data)


class StrayAccessError(Exception):
    """A kernel of the checked build was about to touch what it may not. kernel: its name; address, size, write: where.

    It is raised before anything is touched.
    """

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.address, self.size, self.write = (int(word) for word in _table[_ADDRESS : _WRITE + 1])
        what = "write" if self.write == 1 else "read" if self.write == 0 else "use as a row of"
        super().__init__(f"kernel {kernel} would {what} {self.size} bytes at {self.address:#x}: {self._neighbours()}")

    def _neighbours(self) -> str:
        """Say what lies there, or nearby."""
        for kind in _KINDS:
            for first, end, name in kind.around(self.address):
                if first <= self.address < end:
                    return f"that is {name}, {first:#x}..{end:#x}" + self._granted(kind)
        near = [(abs(edge - self.address), first, end, name) for kind in _KINDS for first, end, name in
                kind.around(self.address) for edge in (first, end)]  # fmt: skip
        if not near:
            return "nothing may be touched"
        _, first, end, name = min(near)
        return f"the nearest is {name}, {first:#x}..{end:#x}"

    def _granted(self, kind: _Kind) -> str:
        if kind is not _machine:
            return ""
        grants = _table[_GRANTS_AT:].reshape(-1, _GRANT_WORDS)[: min(int(_table[_GRANTED]), _GRANTS)]
        below = [g for g in grants.tolist() if g[0] <= self.address]
        if not below:
            return ", and nothing of it was let through"
        first, end, write, rid = max(below)
        how = "writing" if write else "reading"
        return f", of which {first:#x}..{end:#x} was let through for {how} by requester {rid:#06x}"


class _Kind:
    """Ranges of one kind: an ordered list, and what of it the checks read, ranges that overlap made one.

    A thread may change them (where the collector lets memory go, say) while a kernel of another one searches: what the
    checks read is made anew each time, and a kernel finds the old or the new one, whole.
    """

    def __init__(self, word: int) -> None:
        self._word = word
        self._published: deque[npt.NDArray[np.int64]] = deque(maxlen=64)
        self._ranges: list[tuple[int, int, str]] = []
        self._uses: Counter[tuple[int, int, str]] = Counter()
        self._publish()

    def add(self, first: int, size: int, name: str) -> None:
        entry = (first, first + size, name)
        self._uses[entry] += 1
        if self._uses[entry] == 1:
            bisect.insort(self._ranges, entry)
            self._publish()

    def remove(self, first: int, size: int, name: str) -> None:
        entry = (first, first + size, name)
        self._uses[entry] -= 1
        if not self._uses[entry]:
            del self._uses[entry]
            self._ranges.remove(entry)
            self._publish()

    def around(self, address: int) -> list[tuple[int, int, str]]:
        """List the ranges that begin next below and above an address."""
        i = bisect.bisect_right(self._ranges, address, key=lambda entry: entry[0])
        return self._ranges[max(i - 1, 0) : i + 1]

    def _publish(self) -> None:
        merged: list[list[int]] = []
        for first, end, _ in self._ranges:
            if merged and first < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([first, end])
        self._published.append(np.array([len(merged), *(edge for edges in merged for edge in edges)], np.int64))
        _table[self._word] = self._published[-1].ctypes.data


_data, _rows, _machine = _Kind(_DATA), _Kind(_ROWS), _Kind(_MACHINE)
_KINDS = (_data, _rows, _machine)


_kept: dict[int, set[tuple[_Kind, int, int, str]]] = {}  # by the identity of the array that owns the memory
_gone: deque[tuple[_Kind, int, int, str]] = deque()  # of memory that was let go
_changing = threading.Lock()


def _change(kind: _Kind, first: int, size: int, name: str, *, add: bool) -> None:
    with _changing:
        (kind.add if add else kind.remove)(first, size, name)
    _sweep()


def _keep(kind: _Kind, array: npt.NDArray[Any], name: str) -> None:
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
        _keep(_data, array, name)
    return int(array.ctypes.data)


def row_address(rows: npt.NDArray[np.void], name: str = "a row") -> int:
    """Return the address of an array of rows, which kernels may see by `row_at`, as long as its memory lives."""
    if CHECKED and rows.nbytes:
        _keep(_rows, rows, name)
    return int(rows.ctypes.data)


def machine_memory_of(array: npt.NDArray[Any], name: str) -> int:
    """Return the address of an array that counts as the machine's memory, as long as its memory lives."""
    if CHECKED:
        _keep(_machine, array, name)
    return int(array.ctypes.data)


def machine_memory(first: int, size: int, name: str) -> None:
    """Let kernels touch what gates let through of `size` bytes at `first`, until `forget_memory`."""
    if CHECKED:
        _change(_machine, first, size, name, add=True)


def raw_memory(first: int, size: int, name: str) -> None:
    """Let kernels touch `size` bytes at `first`, which no array owns, until `forget_memory`."""
    if CHECKED:
        _change(_data, first, size, name, add=True)


def forget_memory(first: int, size: int, name: str) -> None:
    """Take back what `machine_memory` or `raw_memory` said."""
    if CHECKED:
        kind = _machine if (first, first + size, name) in _machine._uses else _data
        _change(kind, first, size, name, add=False)


def _within(kind: int, address: int, size: int) -> int:
    """Find the range of a kind that holds `size` bytes at `address`: its first address, or -1."""
    at = _load(_TABLE + kind * 8)
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
    _store(_TABLE + _ADDRESS * 8, address)
    _store(_TABLE + _SIZE * 8, size)
    _store(_TABLE + _WRITE * 8, write)
    return 0


def _may_touch(address: int, size: int, write: int) -> int:
    """Tell whether `size` bytes at `address` may be read, or written."""
    if size < 0:
        return _stray(address, size, write)
    if size == 0 or _within(_DATA, address, size) >= 0:
        return 1
    if _within(_MACHINE, address, size) < 0:
        return _stray(address, size, write)
    newest = _load(_TABLE + _GRANTED * 8)
    for i in range(newest - 1, max(newest - _GRANTS, 0) - 1, -1):
        at = _TABLE + (_GRANTS_AT + i % _GRANTS * _GRANT_WORDS) * 8
        if _load(at) <= address and size <= _load(at + 8) - address and write <= _load(at + 16):
            return 1
    return _stray(address, size, write)


def _is_row(address: int, size: int) -> int:
    """Tell whether there is a row of `size` bytes at `address`."""
    first = _within(_ROWS, address, size)
    return 1 if first >= 0 and (address - first) % size == 0 else _stray(address, size, 2)


def _remember(address: int, size: int, write: int, rid: int) -> int:
    """Remember what a gate let through; nothing if `size` is 0. A negative size forgets all."""
    newest = _load(_TABLE + _GRANTED * 8)
    if size < 0:
        _store(_TABLE + _GRANTED * 8, 0)
    elif size > 0:
        at = _TABLE + (_GRANTS_AT + newest % _GRANTS * _GRANT_WORDS) * 8
        _store(at, address)
        _store(at + 8, address + size)
        _store(at + 16, write)
        _store(at + 24, rid)
        _store(_TABLE + _GRANTED * 8, newest + 1)
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
