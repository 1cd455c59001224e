"""Two machines with an 82576 each, QEMU's own and this one, behind one small interface.

Board      the bus: configuration space by routing ID, BARs by address, memory, the wire, time
QemuBoard  QEMU's igb; no guest runs, QEMU does what is asked over its qtest protocol
CardBoard  this card, in a machine of this process; DMA is not remapped, as it is not there
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from typing import Protocol

import numpy as np

from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.hw.types import Ps, Rid, parse_mac
from virtfn.iovm.walk import ConfigBus
from virtfn.machine.clock import MS_PS, NS_PS, VirtualClock
from virtfn.machine.memory import CHUNK
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.vmm.host import Host
from virtfn.vmm.qemu.find import Qemu
from virtfn.vmm.qemu.leash import spawn

__all__ = ["Board", "CardBoard", "QemuBoard"]

ANSWER_S = 10.0


class Board(ConfigBus, Clock, Protocol):
    """A machine with a card, seen from its bus. memory: address of 2 MiB that the card reaches."""

    memory: int

    def mmio_read(self, address: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a BAR."""

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a BAR."""

    def load(self, address: int, size: int) -> bytes:
        """Read memory."""

    def store(self, address: int, content: bytes) -> None:
        """Write memory."""

    def arrive(self, *frames: bytes) -> None:
        """Let frames come in from the wire. Raises VirtfnError if the card does not take them."""

    def left(self) -> list[bytes]:
        """Take the frames that left by the wire since the last call."""

    def close(self) -> None:
        """Take the machine away."""


class QemuBoard:
    """A q35 machine of QEMU with an igb on the root bus. Implements `Board`.

    One line asks, one line answers: `OK`, and a value. Spec: QEMU, "QTest Device Emulation Testing Framework".
    """

    memory = 16 << 20
    _ECAM = 0xB000_0000
    _LETTERS = {1: "b", 2: "w", 4: "l"}

    def __init__(self, qemu: Qemu) -> None:
        """Start QEMU. Raises VirtfnError."""
        self._now = Ps(0)
        ours, theirs = socket.socketpair()
        self._wire, far = socket.socketpair(type=socket.SOCK_DGRAM)
        self._wire.setblocking(False)
        with theirs, far:
            self._child = spawn(
                [
                    *qemu.command,
                    *("-machine", "q35", "-accel", "qtest", "-m", "64", "-nodefaults", "-display", "none"),
                    *("-chardev", f"socket,id=q,fd={theirs.fileno()}", "-qtest", "chardev:q", "-qtest-log", "none"),
                    *("-netdev", f"dgram,id=n,local.type=fd,local.str={far.fileno()}"),
                    *("-device", "igb,netdev=n,bus=pcie.0"),
                ],
                environ=qemu.environ,
                keep=(theirs.fileno(), far.fileno()),
                stderr=2,
            )
        ours.settimeout(ANSWER_S)
        self._lines = ours.makefile("rw", encoding="ascii", newline="\n")
        ours.close()
        try:
            for offset, word in ((0x64, 0), (0x60, self._ECAM | 1)):  # the host bridge's PCIEXBAR
                self._ask(f"outl 0xcf8 {1 << 31 | offset:#x}")
                self._ask(f"outl 0xcfc {word:#x}")
        except VirtfnError:
            self.close()
            raise

    def _ask(self, command: str) -> str:
        try:
            self._lines.write(command + "\n")
            self._lines.flush()
            answer = self._lines.readline().split()
        except OSError as error:
            raise VirtfnError(f"QEMU does not answer {command!r}: {error}") from error
        if not answer or answer[0] != "OK":
            raise VirtfnError(f"QEMU answers {command!r} with {' '.join(answer) or 'its end'}")
        return answer[-1]

    def now(self) -> Ps:
        """Return the virtual machine's time."""
        return self._now

    def sleep(self, duration_ps: int) -> None:
        """Let the virtual machine's time pass, 1 ns at least."""
        self._now = Ps(int(self._ask(f"clock_step {max(1, duration_ps // NS_PS)}")) * NS_PS)

    def mmio_read(self, address: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a BAR."""
        return int(self._ask(f"read{self._LETTERS[size]} {address:#x}"), 16)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a BAR."""
        self._ask(f"write{self._LETTERS[size]} {address:#x} {value:#x}")

    def config_read(self, rid: Rid, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of configuration space."""
        return self.mmio_read(self._ECAM + (rid << 12) + offset, size)

    def config_write(self, rid: Rid, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of configuration space."""
        self.mmio_write(self._ECAM + (rid << 12) + offset, size, value)

    def load(self, address: int, size: int) -> bytes:
        """Read memory."""
        return bytes.fromhex(self._ask(f"read {address:#x} {size}")[2:])

    def store(self, address: int, content: bytes) -> None:
        """Write memory."""
        self._ask(f"write {address:#x} {len(content)} 0x{content.hex()}")

    def arrive(self, *frames: bytes) -> None:
        """Let frames come in from the wire; raises VirtfnError if QEMU does not take them off the socket."""
        for frame in frames:
            self._wire.send(frame)
            until = time.monotonic() + ANSWER_S
            while struct.unpack("i", fcntl.ioctl(self._wire, termios.TIOCOUTQ, bytes(4)))[0]:
                if time.monotonic() > until:
                    raise VirtfnError("the card takes no frame from the wire")
                self.sleep(0)  # QEMU does all that is due between two lines
        self.sleep(0)

    def left(self) -> list[bytes]:
        """Take the frames that left by the wire since the last call."""
        frames = []
        while True:
            try:
                frames.append(self._wire.recv(1 << 16))
            except BlockingIOError:
                return frames

    def close(self) -> None:
        """End QEMU."""
        self._child.kill()
        self._child.wait()
        self._lines.close()
        self._wire.close()


class CardBoard:
    """A machine of this process with this card in its slot, in virtual time. Implements `Board`."""

    def __init__(self) -> None:
        self._clock = VirtualClock()
        self._host = Host(self._clock, CHUNK, slots=1, remapping=False)
        self._nic = Nic82576(self._host, self._host.iommu.iommu, Card(parse_mac("00:1b:21:2b:46:e0")))
        self._nic.port.set_wire(True, 1000)
        self._nic.open_wire()
        self._host.root.attach(self._nic)
        self.memory: int = self._host.memory.alloc_chunks(1)[0]
        self.config_read = self._host.root.config_read
        self.config_write = self._host.root.config_write
        self.mmio_read = self._host.root.mmio_read
        self.mmio_write = self._host.root.mmio_write
        self.now = self._clock.now

    def sleep(self, duration_ps: int) -> None:
        """Let time pass, and the card do what is due."""
        self._clock.sleep(duration_ps)
        self._nic.serve()

    def load(self, address: int, size: int) -> bytes:
        """Read memory."""
        at = address - self._host.memory.base
        return self._host.memory.bytes[at : at + size].tobytes()

    def store(self, address: int, content: bytes) -> None:
        """Write memory."""
        at = address - self._host.memory.base
        self._host.memory.bytes[at : at + len(content)] = np.frombuffer(content, np.uint8)

    def arrive(self, *frames: bytes) -> None:
        """Let frames come in from the wire; raises VirtfnError if the port does not take them."""
        self.sleep(MS_PS)  # the wire has its pace
        lengths = np.array([len(frame) for frame in frames], np.int64)
        store = np.frombuffer(b"".join(frames), np.uint8)
        taken, _ = self._nic.arrive(store, np.cumsum(lengths) - lengths, lengths, 0, len(frames))
        if taken < len(frames):
            raise VirtfnError("the card takes no frame from the wire")

    def left(self) -> list[bytes]:
        """Take the frames that left by the wire since the last call."""
        waiting = self._nic.departures().tobytes()
        self._nic.release_departures(len(waiting))
        frames = []
        while waiting:
            end = 4 + int.from_bytes(waiting[:4], "big")
            frames.append(waiting[4:end])
            waiting = waiting[end:]
        return frames

    def close(self) -> None:
        """Release memory."""
        self._nic.close()
        self._host.close()
