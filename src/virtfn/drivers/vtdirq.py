"""The remapping driver's part for interrupts: the table, and the descriptors that interrupts are posted to.

    one chunk of memory    | 65536 table entries, 1 MiB | 16384 posted interrupt descriptors, 1 MiB |

An entry belongs to one requester, and the unit checks that (SVT, SID). A message made here names its entry; what a
device writes instead of it raises nothing but what its own entries allow.

Spec: VT-d, interrupt remapping; software usage of interrupt remapping.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from virtfn.hw.types import Hpa, Rid, format_rid
from virtfn.hw.vtd.interrupts import (
    IRTE_BYTES,
    PID_BYTES,
    PID_CONTROL,
    PostedControl,
    PostedIrte,
    RemappableAddress,
    RemappedIrte,
    SourceValidation,
)
from virtfn.machine.memory import CHUNK, HostMemory
from virtfn.machine.ports import VirtfnError

__all__ = ["ENTRIES", "InterruptTable", "PostedDescriptor"]

ENTRIES = 1 << 16
_LOW = (1 << 64) - 1
_FEE = 0xFEE


class Invalidator(Protocol):
    """What forgets entries that the unit has cached."""

    def invalidate_interrupts(self, index: int, mask: int) -> None:
        """Forget 2**mask entries at `index`."""


class PostedDescriptor:
    """Where interrupts of one virtual machine wait, a bit for each virtual vector. words: (8,) uint64."""

    def __init__(self, address: Hpa, words: npt.NDArray[np.uint64], destination: int, vector: int) -> None:
        self.address = address
        self._words = words
        words[:] = 0
        words[PID_CONTROL // 8] = PostedControl.of(NV=vector, NDST=destination << 8).value

    def take(self) -> list[int]:
        """Take the vectors that wait, highest first, as a local APIC does; new ones notify again."""
        # ON first: a bit that is set later than it is cleared brings a notification of its own.
        control = PostedControl(int(self._words[PID_CONTROL // 8]))
        self._words[PID_CONTROL // 8] = control.replace(ON=0).value
        taken = []
        for word in range(3, -1, -1):
            bits = int(self._words[word])
            if not bits:
                continue
            self._words[word] = 0
            while bits:
                bit = bits.bit_length() - 1
                taken.append(word * 64 + bit)
                bits ^= 1 << bit
        return taken


class InterruptTable:
    """The interrupt remapping table of one unit, and its posted interrupt descriptors.

    Raises VirtfnError if no memory is left for them.
    """

    def __init__(self, memory: HostMemory, invalidator: Invalidator) -> None:
        (self.address,) = memory.alloc_chunks(1)
        self._memory = memory
        self._invalidator = invalidator
        words = memory.bytes[self.address - memory.base :][:CHUNK].view("<u8")
        self._entries = words[: ENTRIES * IRTE_BYTES // 8]
        self._descriptors = words[ENTRIES * IRTE_BYTES // 8 :]
        self._owners: dict[int, Rid] = {}
        self._free: list[int] = []
        self._free_descriptors = list(range(self._descriptors.size * 8 // PID_BYTES - 1, -1, -1))

    @property
    def descriptors(self) -> Hpa:
        """Where the posted interrupt descriptors begin."""
        return Hpa(self.address + CHUNK // 2)

    def remap(self, rid: Rid, destination: int, vector: int) -> tuple[int, int]:
        """Let requester `rid` raise `vector` at the local APIC `destination`; return the message for it.

        Raises VirtfnError when the table is full.
        """
        entry = RemappedIrte.of(P=1, V=vector, DST=destination << 8, SID=int(rid), SVT=SourceValidation.REQUESTER)
        return self._write(rid, entry.value)

    def post(self, rid: Rid, vector: int, descriptor: PostedDescriptor) -> tuple[int, int]:
        """Let requester `rid` post the virtual `vector` to a descriptor; return the message for it.

        Raises VirtfnError when the table is full.
        """
        entry = PostedIrte.of(
            P=1,
            IM=1,
            VV=vector,
            PDA_LOW=descriptor.address >> 6 & (1 << 26) - 1,
            PDA_HIGH=descriptor.address >> 32,
            SID=int(rid),
            SVT=SourceValidation.REQUESTER,
        )
        return self._write(rid, entry.value)

    def free(self, address: int) -> None:
        """Take back the entry that a message's `address` names; the message raises nothing any more.

        Raises VirtfnError if it names none that is in use.
        """
        where = RemappableAddress(address & 0xFFFFFFFF)
        index = where.HANDLE | where.HANDLE_HIGH << 15
        if index not in self._owners:
            raise VirtfnError(f"no interrupt has the message {address:#x}", errno_name="ENOENT")
        del self._owners[index]
        self._entries[2 * index] = 0
        self._entries[2 * index + 1] = 0
        self._invalidator.invalidate_interrupts(index, 0)
        self._free.append(index)

    def descriptor(self, destination: int, vector: int) -> PostedDescriptor:
        """Make a posted interrupt descriptor whose notifications raise `vector` at the local APIC `destination`.

        Raises VirtfnError when there are none left.
        """
        if not self._free_descriptors:
            raise VirtfnError("no posted interrupt descriptor is left", errno_name="ENOSPC")
        first = self._free_descriptors.pop() * PID_BYTES // 8
        words = self._descriptors[first : first + PID_BYTES // 8]
        return PostedDescriptor(Hpa(self.address + CHUNK // 2 + first * 8), words, destination, vector)

    def free_descriptor(self, descriptor: PostedDescriptor) -> None:
        """Take a descriptor back; no entry may name it any more."""
        self._free_descriptors.append((descriptor.address - self.address - CHUNK // 2) // PID_BYTES)

    def entries(self) -> list[tuple[int, Rid, int]]:
        """List the entries in use: index, owner, the 128 bits."""
        return [
            (i, rid, int(self._entries[2 * i]) | int(self._entries[2 * i + 1]) << 64)
            for i, rid in sorted(self._owners.items())
        ]

    def close(self) -> None:
        """Give the memory back; remapping of interrupts must be off."""
        self._memory.free_chunks([self.address])

    def _write(self, rid: Rid, entry: int) -> tuple[int, int]:
        if not self._free:
            first = len(self._owners)
            if first == ENTRIES:
                raise VirtfnError(
                    f"the interrupt remapping table has no entry left for {format_rid(rid)}", errno_name="ENOSPC"
                )
            self._free.append(first)
        index = self._free.pop()
        self._owners[index] = rid
        # The low half last: it holds P, and the unit may read at any time.
        self._entries[2 * index + 1] = entry >> 64
        self._entries[2 * index] = entry & _LOW
        address = RemappableAddress.of(BASE=_FEE, FORMAT=1, HANDLE=index & 0x7FFF, HANDLE_HIGH=index >> 15)
        return address.value, 0
