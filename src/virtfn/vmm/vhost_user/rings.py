"""The rings of a client, as its messages set them up: sizes, addresses in the client, eventfds.

    addresses, size, base  --kick-->  running  --GET_VRING_BASE, reset, the client goes-->  stopped

Whether frames are wanted is told beside that (`enabled`). A ring that runs is found anew whenever memory changes.
"""

from __future__ import annotations

import os

from virtfn.devices.virtio import BackEnd, Bridge
from virtfn.hw.virtio.ring import AVAIL_ALIGN, AVAIL_INDEX, DESC_ALIGN, DESC_BYTES, USED_ALIGN, avail_bytes, used_bytes
from virtfn.kernels.virtio.state import ERROR_RING, MOST_SIZE
from virtfn.machine.memory import view_bytes
from virtfn.machine.virtio import RX, TX
from virtfn.vmm.vfio_user.eventfds import is_eventfd
from virtfn.vmm.vhost_user.memory import ClientMemory
from virtfn.vmm.vhost_user.messages import BadMessageError, check

__all__ = ["Ring"]

KICK, CALL, ERR = range(3)
_NAMES = {RX: "rx", TX: "tx"}
_ALIGN = DESC_ALIGN, USED_ALIGN, AVAIL_ALIGN


class Ring:
    """One ring. signals: address of a SIGNALS row, by which eventfds are counted in."""

    def __init__(self, number: int, back: BackEnd, bridge: Bridge, signals: int) -> None:
        self.number = number
        self.size = self.base = 0
        self._back = back
        self._bridge = bridge
        self._row = back.row[_NAMES[number]]
        self._parts: tuple[int, int, int] | None = None  # descriptors, used, available: addresses in the client
        self._channels = [back.channels[2 * kind + number] for kind in (KICK, CALL, ERR)]
        for channel in self._channels:
            channel["signals"] = signals

    @property
    def running(self) -> bool:
        """Whether it was kicked off, and not stopped since."""
        return bool(self._row["started"])

    def set_size(self, size: int) -> None:
        """Set how many descriptors it has. Raises BadMessageError."""
        check(not self.running, "ring-runs")
        check(0 < size <= MOST_SIZE and not size & (size - 1), "ring-size")
        self.size = size

    def set_base(self, base: int) -> None:
        """Set the index of the first chain to take. Raises BadMessageError."""
        check(not self.running, "ring-runs")
        check(base <= 0xFFFF, "ring-base")
        self.base = base

    def set_parts(self, *parts: int) -> None:
        """Set where descriptors, used ring and available ring are in the client. Raises BadMessageError."""
        check(not self.running or parts == self._parts, "ring-runs")
        check(all(at and not at % align for at, align in zip(parts, _ALIGN, strict=True)), "ring-alignment")
        desc, used, avail = parts
        self._parts = desc, used, avail

    def enable(self, enabled: bool) -> None:
        """Say whether frames are wanted."""
        self._row["enabled"] = int(enabled)

    def start(self, memory: ClientMemory, *, resumes: bool = False) -> None:
        """Let it run, from its base on. resumes: its base is what its used index says.

        Raises BadMessageError if it was not set up, or is not in memory.
        """
        check(self._parts is not None and self.size > 0, "ring-not-set-up")
        where = self._find(memory)
        check(where is not None, "ring-nowhere")
        if where is not None:
            if resumes:
                self.base = int.from_bytes(view_bytes(where[2] + AVAIL_INDEX, 2).tobytes(), "little")
            self._back.place_queue(self.number, self.size, *where, base=self.base)
            self._row["started"] = 1

    def _find(self, memory: ClientMemory) -> tuple[int, int, int] | None:
        """Find its parts here: descriptors, available, used; None if one of them is nowhere."""
        if self._parts is None:
            return None
        desc, used, avail = self._parts
        found = (
            memory.find(desc, DESC_BYTES * self.size),
            memory.find(avail, avail_bytes(self.size)),
            memory.find(used, used_bytes(self.size)),
        )
        aligned = zip(found, (DESC_ALIGN, AVAIL_ALIGN, USED_ALIGN), strict=True)
        return found if all(at and not at % align for at, align in aligned) else None

    def move(self, memory: ClientMemory) -> None:
        """Find it anew, since memory has changed; one that is nowhere any more is broken."""
        if not self.running:
            return
        where = self._find(memory)
        if where is not None:
            self._row["desc"], self._row["avail"], self._row["used"] = where
            return
        self._row["size"] = 0
        if not self._row["broken"]:
            self._row["broken"] = ERROR_RING
            self._row["errors"][ERROR_RING] += 1

    def stop(self) -> int:
        """Stop it, and let go of its kick and call; return the index of the first chain that was not taken."""
        if self.running:
            self.base = int(self._row["next_avail"])
        for member in ("started", "broken", "armed", "size", "desc", "avail", "used"):
            self._row[member] = 0
        self.set_fd(KICK, -1)
        self.set_fd(CALL, -1)
        return self.base

    def close(self) -> None:
        """Stop it, and forget all that was set."""
        self.stop()
        self.set_fd(ERR, -1)
        self.size = self.base = 0
        self._parts = None

    def set_fd(self, kind: int, fd: int) -> None:
        """Use an eventfd from now on, which becomes the ring's own; below 0: none. The one before is closed.

        Raises BadMessageError if it is no eventfd, or cannot be waited for; then it stays the caller's.
        """
        check(fd < 0 or is_eventfd(fd), "not-an-eventfd")
        channel = self._channels[kind]
        before = int(channel["fd"])
        watched = kind == KICK and self.number == TX  # nobody waits for kicks of the other: frames find room, or do not
        if watched and fd >= 0:
            try:
                self._bridge.watch(fd)
            except OSError as e:
                raise BadMessageError("kick-not-watched", str(e)) from None
        if before >= 0:
            if watched:
                self._bridge.unwatch(before)
            os.close(before)
        channel["fd"], channel["pending"] = fd, 0
        if kind == KICK:
            # Without a kick the ring is looked at all the time.
            self._row["kick"] = self._back.kick(self.number) if fd >= 0 else 0
            self._row["armed"] = 0
