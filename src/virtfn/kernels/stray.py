"""What of this process's memory kernels may touch, and the error when one would touch anything else.

The ranges are kept twice: as Python lists, which know the names, and as words that the compiled checks of `ranges.py`
read. In an ordinary build there are none.
"""

from __future__ import annotations

import bisect
import os
from collections import Counter, deque

import numpy as np
import numpy.typing as npt

__all__ = ["CHECKED", "DATA_RANGES", "MACHINE_RANGES", "ROW_RANGES", "Kind", "StrayAccessError"]

CHECKED = bool(os.environ.get("VIRTFN_CHECKED"))
"""Whether this is the checked build of all kernels."""

GRANTS = 1 << 12
# Words of the table that the checks read: the address of each kind's ranges, how many grants; what went astray.
DATA, ROWS, MACHINE, GRANTED, ADDRESS, SIZE, WRITE = range(7)
GRANTS_AT = 8
GRANT_WORDS = 4  # first, end, whether it may be written, requester
_table = np.zeros(GRANTS_AT + GRANT_WORDS * GRANTS if CHECKED else GRANTS_AT, np.int64)
TABLE = int(_table.ctypes.data)


class StrayAccessError(Exception):
    """A kernel of the checked build was about to touch what it may not. kernel: its name; address, size, write: where.

    It is raised before anything is touched.
    """

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.address, self.size, self.write = (int(word) for word in _table[ADDRESS : WRITE + 1])
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

    def _granted(self, kind: Kind) -> str:
        if kind is not MACHINE_RANGES:
            return ""
        grants = _table[GRANTS_AT:].reshape(-1, GRANT_WORDS)[: min(int(_table[GRANTED]), GRANTS)]
        below = [g for g in grants.tolist() if g[0] <= self.address]
        if not below:
            return ", and nothing of it was let through"
        first, end, write, rid = max(below)
        how = "writing" if write else "reading"
        return f", of which {first:#x}..{end:#x} was let through for {how} by requester {rid:#06x}"


class Kind:
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
        """Add a range; several times, and it has to be taken away as often."""
        entry = (first, first + size, name)
        self._uses[entry] += 1
        if self._uses[entry] == 1:
            bisect.insort(self._ranges, entry)
            self._publish()

    def remove(self, first: int, size: int, name: str) -> None:
        """Take away a range that was added."""
        entry = (first, first + size, name)
        self._uses[entry] -= 1
        if not self._uses[entry]:
            del self._uses[entry]
            self._ranges.remove(entry)
            self._publish()

    def holds(self, first: int, size: int, name: str) -> bool:
        """Tell whether exactly this range was added."""
        return self._uses[(first, first + size, name)] > 0

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


DATA_RANGES, ROW_RANGES, MACHINE_RANGES = Kind(DATA), Kind(ROWS), Kind(MACHINE)
_KINDS = (DATA_RANGES, ROW_RANGES, MACHINE_RANGES)
