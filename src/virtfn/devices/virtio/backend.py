"""The back end of one front end: its memory, its two queues, what was agreed on. Frames are moved by `Bridge`.

Set up by a driver in this process, as `VirtioDevice`, or by messages of another one (`vmm/vhost_user`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from virtfn.hw.types import Iova, Mac
from virtfn.hw.virtio.net import Features, closed
from virtfn.hw.virtio.ring import (
    AVAIL_ALIGN,
    AVAIL_INDEX,
    DESC_ALIGN,
    DESC_BYTES,
    USED_ALIGN,
    avail_bytes,
    used_bytes,
)
from virtfn.kernels.ranges import row_address
from virtfn.kernels.virtio.state import ERROR_NAMES, MOST_SIZE, REGIONS, new_channels, new_virtio
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import VirtfnError
from virtfn.machine.virtio import VirtioDevice

__all__ = ["OFFERED", "BackEnd"]

OFFERED = Features.of(
    CSUM=1, GUEST_CSUM=1, GUEST_TSO4=1, GUEST_TSO6=1, GUEST_ECN=1, HOST_TSO4=1, HOST_TSO6=1, HOST_ECN=1,
    MRG_RXBUF=1, INDIRECT_DESC=1, EVENT_IDX=1, VERSION_1=1,
).value  # fmt: skip
_NO_MAC = Mac(0)
_QUEUES = ("rx", "tx")
_ERRORS_AT = 4  # of the channels: kick and call of each queue come before


class BackEnd(VirtioDevice):
    """What the host knows of a front end. memory: (guest address, bytes, address here) of each part of its memory.

    block: (1,) VIRTIO, for kernels. channels: (6,) CHANNEL: kick of both queues, call of both, errors of both.
    """

    def __init__(
        self, memory: Iterable[tuple[int, int, int]] = (), *, mac: Mac = _NO_MAC, mtu: int = 1500,
        offered: int = OFFERED,
    ) -> None:  # fmt: skip
        self.mac = mac
        self.mtu = mtu
        self.offered = offered
        self.block = new_virtio()
        self.row: np.void = self.block[0]
        self.address = row_address(self.block, "a virtio front end")
        self.channels = new_channels(3 * len(_QUEUES))
        self._port_link = True
        for number, name in enumerate(_QUEUES):
            self.row[name]["enabled"] = 1
            self.row[name]["kick"] = self.kick(number)
            self.row[name]["call"] = self._channel(len(_QUEUES) + number)
            self.row[name]["err"] = self._channel(_ERRORS_AT + number)
        self.set_memory(memory)

    def _channel(self, i: int) -> int:
        return int(self.channels.ctypes.data) + i * self.channels.itemsize

    def set_memory(self, memory: Iterable[tuple[int, int, int]]) -> None:
        """Let the front end name these parts of memory from now on. No kernel may be at work.

        Raises VirtfnError for too many, or such as cannot be.
        """
        parts = list(memory)
        if len(parts) > REGIONS:
            raise VirtfnError(f"a front end has {REGIONS} parts of memory at most", errno_name="E2BIG")
        end = 0
        for gpa, size, _ in sorted(parts):
            if size <= 0 or gpa < end or gpa + size > 1 << 62:
                raise VirtfnError(f"{size} bytes at {gpa:#x} cannot be memory of a front end", errno_name="EINVAL")
            end = gpa + size
        rows = self.row["regions"]
        rows[:] = np.zeros((), rows.dtype)
        for i, part in enumerate(parts):
            rows[i] = part
        self.row["own"]["regions"], self.row["own"]["hit"] = len(parts), 0
        self._memory = parts

    def find(self, gpa: int, size: int) -> int | None:
        """Find where `size` bytes at an address of the front end are; None unless all are in one part of its memory."""
        for first, length, here in self._memory:
            if first <= gpa and gpa + size <= first + length:
                return here + gpa - first
        return None

    # What a driver does.

    def reset(self) -> None:
        """Stop, and forget queues and features."""
        self.row["own"]["up"] = self.row["own"]["features"] = 0
        for name in _QUEUES:
            q = self.row[name]
            for member in ("desc", "avail", "used", "size", "started", "broken"):
                q[member] = 0
        self.channels["pending"] = 0

    def accept(self, features: int) -> bool:
        """Agree on features; False if these cannot be."""
        if features & ~self.offered or not closed(features) or not Features(features).VERSION_1:
            return False
        self.row["own"]["features"] = features
        return True

    def set_queue(self, number: int, size: int, desc: Iova, avail: Iova, used: Iova) -> None:
        """Tell where the parts of a queue are.

        Raises VirtfnError for what is no memory of the front end, not aligned, or no size.
        """
        if size not in (1 << bit for bit in range(MOST_SIZE.bit_length())):
            raise VirtfnError(f"a queue of {size} descriptors: a power of two up to {MOST_SIZE}", errno_name="EINVAL")
        parts = (
            ("desc", desc, DESC_BYTES * size, DESC_ALIGN),
            ("avail", avail, avail_bytes(size), AVAIL_ALIGN),
            ("used", used, used_bytes(size), USED_ALIGN),
        )
        found = {}
        for name, at, nbytes, align in parts:
            here = self.find(at, nbytes)
            if at % align or here is None or here % align:
                raise VirtfnError(f"the {name} part of queue {number} cannot be at {at:#x}", errno_name="EFAULT")
            found[name] = here
        self.place_queue(number, size, found["desc"], found["avail"], found["used"])

    def place_queue(self, number: int, size: int, desc: int, avail: int, used: int, base: int = 0) -> None:
        """Set a queue up by addresses in this process. base: index of the first chain to take.

        What was used before is read from the ring, as somebody may have run it before.
        """
        q = self.row[_QUEUES[number]]
        q["desc"], q["avail"], q["used"], q["size"] = desc, avail, used, size
        q["next_avail"] = q["seen_avail"] = base
        q["used_index"] = q["shown"] = int(view_bytes(used + AVAIL_INDEX, 2).view(np.uint16)[0])
        q["has_signalled"] = q["armed"] = q["broken"] = 0

    def start(self) -> None:
        """Let the queues that are set up run."""
        for name in _QUEUES:
            self.row[name]["started"] = int(self.row[name]["size"] > 0)
        self.row["own"]["up"] = 1

    @property
    def up(self) -> bool:
        """Whether a driver has started it."""
        return bool(self.row["own"]["up"])

    @property
    def link(self) -> bool:
        """Whether frames can go anywhere: it is a port of a bridge."""
        return self._port_link

    @property
    def needs_reset(self) -> bool:
        """Whether something that made no sense has stopped a queue."""
        return any(self.row[name]["broken"] for name in _QUEUES)

    def kick(self, number: int) -> int:
        """Return the address of the CHANNEL row that tells the back end of a queue."""
        return self._channel(number)

    def take_calls(self) -> list[int]:
        """List the queues whose driver is to be interrupted, once each."""
        calls = self.channels["pending"][len(_QUEUES) : _ERRORS_AT]
        called = np.flatnonzero(calls).tolist()
        calls[:] = 0
        return called

    # What observers see.

    def costs(self) -> dict[str, int]:
        """Count what the front end's frames have cost, as a `Meter` calls it."""
        sent = self.channels["sent"]
        return {
            "notify_host": int(sent[: len(_QUEUES)].sum()),
            "notify_guest": int(sent[len(_QUEUES) : _ERRORS_AT].sum()),
            "copies": sum(int(self.row[name]["copies"]) for name in _QUEUES),
            "copy_bytes": sum(int(self.row[name]["copy_bytes"]) for name in _QUEUES),
        }

    def counters(self) -> dict[str, int]:
        """Count frames, bytes and copies of each queue, notifications each way, and those that nobody wanted."""
        counts = {}
        for number, name in enumerate(_QUEUES):
            q = self.row[name]
            for member in ("frames", "bytes", "copies", "copy_bytes", "descriptors"):
                counts[f"{name}_{member}"] = int(q[member])
            for kind, first in (("kicks", 0), ("calls", len(_QUEUES))):
                channel = self.channels[first + number]
                counts[f"{name}_{kind}"] = int(channel["sent"])
                counts[f"{name}_{kind}_suppressed"] = int(channel["suppressed"])
        return counts

    def errors(self) -> dict[str, int]:
        """Count chains that made no sense, of both queues, by what was wrong."""
        totals = sum(self.row[name]["errors"] for name in _QUEUES)
        return {name: int(count) for name, count in zip(ERROR_NAMES, totals, strict=True) if count}
