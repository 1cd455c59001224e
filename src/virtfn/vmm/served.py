"""A function behind a vfio-user socket: a virtual machine of another process plugs it in.

    QEMU --- socket ---> ServedFunction ---> AssignedFunction ---> device      each message about a register is an exit
      |                     | dma_mapped -> domain of the IOMMU -> tables     QEMU's memory, by the guest's addresses
      |<-- message of a vector: a posted write, made by the host's vector ---- interrupt remapping
      +--- ring pages, mapped: no message
      |<-> memory that is not shared: by messages, `mirror.py`

The device and the IOMMU see nothing that they do not see of a guest in this process.

QEMU must not see at once that the function has MSI-X: it would emulate the table, and aborts when such a function is
unplugged. So the capability shows another ID until QEMU has looked and resets the function; the guest finds MSI-X, and
its table is ours.

Spec: vfio-user protocol; PCI Express Base Specification, MSI-X.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from virtfn.hw.pci import CONFIG_SIZE, Command, DevCap, DevCtl, Location, MsiX, MsiXControl, Pcie, Type0
from virtfn.hw.types import Hpa, Iova, Rid
from virtfn.hw.vtd.tables import INTERRUPT_RANGE, INTERRUPT_RANGE_END
from virtfn.kernels.link import LINK
from virtfn.kernels.ranges import row_address
from virtfn.machine.configspace import find_capability, size_bars
from virtfn.machine.memory import CHUNK, PAGE, HostMemory
from virtfn.machine.meter import Meter, device_costs
from virtfn.machine.netports import Carrier, Vectors
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.vmm.allowance import Allowance
from virtfn.vmm.assign import AssignedFunction
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import MOST_TABLES, Host
from virtfn.vmm.mirror import Mirror
from virtfn.vmm.vfio_user import (
    Client,
    Going,
    Irq,
    Limits,
    Region,
    RegionIndex,
    Server,
    Steps,
    VfioUserDevice,
    split,
)

__all__ = ["ServedFunction", "SharedFiles"]

_VENDOR_SPECIFIC = 0x09
_MOST_IN_PIECES = 2 * CHUNK
_MOST_FILES = 256  # a mirror of memory that is not shared has one for each range
_PIECE = 16 * PAGE  # mapped at a time, where pages are small
_GIB = 1 << 30
# A LINK row is looked at all the time; by number is faster than by name.
_FD, _RID, _FUNCTION, _MSIX, _FIRST, _VECTORS, _PLAIN, _ANSWERED, _DONE, _SENT, _OWED, _CUT = (
    (LINK["link"].names or ()).index(name)
    for name in (
        *("fd", "rid", "function", "msix", "first", "vectors", "plain"),
        *("answered", "writes", "interrupts", "owed", "cut"),
    )
)
_LIMITS = Limits(max_data_xfer_size=4096)


class SharedFiles:
    """Memory files of a virtual machine, each with addresses of ours as long as anything of it is mapped.

    room: bytes that they may have together, set aside whatever other machines do; None: all that are left, for a host
    of one machine. Raises VirtfnError when there are not so many left.
    """

    def __init__(self, memory: HostMemory, room: int | None = None) -> None:
        self._room = memory.room(room)
        self._files: dict[tuple[int, int], tuple[Hpa, int]] = {}
        self._users: dict[tuple[int, int], int] = {}

    def take(self, fd: int, end: int) -> tuple[tuple[int, int], Hpa]:
        """Use the first `end` bytes of a file once more; return its identity, and where it starts.

        Raises VirtfnError when the machine has no room left for it, or too many files, or it has grown to that size
        while it was in use: behind what it had, addresses are others'.
        """
        state = os.fstat(fd)
        key = state.st_dev, state.st_ino
        if key in self._files and self._files[key][1] < end and not self._users[key]:
            self._forget(key)
        if key not in self._files:
            # A file that nobody uses is kept until room is needed: a guest that boots comes back to it many times.
            for idle in [k for k, users in self._users.items() if not users]:
                self._forget(idle)
            if len(self._files) == _MOST_FILES:
                raise VirtfnError(f"a virtual machine shares up to {_MOST_FILES} files", errno_name="ENOSPC")
            self._files[key] = self._room.adopt(fd, state.st_size), state.st_size
            self._users[key] = 0
        start, size = self._files[key]
        if end > size:
            raise VirtfnError(f"the memory file had {size:#x} bytes, and has grown since", errno_name="EINVAL")
        self._users[key] += 1
        return key, start

    def drop(self, key: tuple[int, int]) -> None:
        """Use a file once less."""
        self._users[key] -= 1

    def close(self) -> None:
        """Let go of all files, and of the room; nothing may be mapped from them any more."""
        for key in list(self._files):
            self._forget(key)
        self._room.close()

    def _forget(self, key: tuple[int, int]) -> None:
        self._room.abandon(self._files.pop(key)[0])
        del self._users[key]


class ServedFunction(VfioUserDevice):
    """One function at one socket. Made when it is given to a virtual machine, closed when it is taken back.

    config: the virtual configuration space. domain: empty, and what the machine shares is mapped into it. files: of the
    virtual machine. mapped: let it map what can be mapped. path: of the socket. meter: of the machine; its own if none
    is given. emulation: of a function that the VMM makes itself. carrier: who moves its frames.

    Raises VirtfnError if the function has no MSI-X, or the socket cannot be.
    """

    def __init__(
        self,
        host: Host,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        domain: DmaDomain,
        files: SharedFiles,
        path: Path,
        *,
        mapped: bool = True,
        meter: Meter | None = None,
        emulation: Emulation | None = None,
    ) -> None:
        self._host = host
        self._emulation = emulation
        self.carrier = cast(Carrier, device) if emulation is None else emulation
        self._domain = domain
        domain.limit_tables(MOST_TABLES)
        self._files = files
        self._bars = {bar: size for bar, (size, _) in size_bars(config).items()}
        self._client: Client | None = None
        self._hidden, self._masters = True, False
        self._placed: dict[int, tuple[tuple[int, int], list[tuple[int, int]]]] = {}
        self.meter = Meter() if meter is None else meter
        self.meter.follow(rid, device_costs(device, host.iommu, rid) if emulation is None else emulation.costs)
        self.allowance = Allowance()
        self._msix_at = find_capability(config, MsiX)
        table = Location(config.read(self._msix_at + MsiX.TABLE.offset, 4))
        vectors = MsiXControl(config.read(self._msix_at + MsiX.CONTROL.offset, 2)).TABLE_SIZE + 1
        self.function = AssignedFunction(
            device, rid, config, self, msix_bar=table.BIR, vectors=vectors, mapped=mapped, meter=self.meter
        )
        self._config = config
        self._block = np.zeros(1, LINK)
        self._link_address = row_address(self._block, "a link")
        self._routes = self._block[0]["routes"]
        self._link = self._block["link"].view(np.int64).data
        self._link[_FD], self._link[_RID] = -1, rid
        self.mirror = Mirror(device, rid, self, self.meter)
        self.server = Server(path, self, mapper=self, limits=_LIMITS)

    # The virtual machine's end.

    @property
    def connected_now(self) -> bool:
        """Whether a virtual machine has it plugged in."""
        return self._client is not None

    @property
    def interrupts(self) -> int:
        """Interrupts that were sent to the machine."""
        return self.meter["interrupts"]

    @property
    def messages(self) -> int:
        """Messages about registers: the exits of this machine."""
        return self.meter.exits

    def lend(self, vectors: Vectors) -> int:
        """Let kernels answer and interrupt the machine until `take_back`; return the address of their LINK row.

        Not where its memory is mirrored: what an interrupt is about has to be sent before it. vectors: the function's.
        """
        function, msix, first, bits, plain = vectors
        if not self._masters:
            bits = 0
        usable = (bits or plain) and not self.mirror.running
        link = self._link
        link[_FD] = self._client.borrow() if self._client is not None and usable else -1
        link[_FUNCTION], link[_MSIX], link[_FIRST], link[_VECTORS], link[_PLAIN] = function, msix, first, bits, plain
        return self._link_address

    def take_back(self) -> None:
        """Account for what kernels did, and send what they could not."""
        link = self._link
        if self._client is None or link[_FD] < 0:
            return
        reads, writes, owed = link[_ANSWERED], link[_DONE], link[_OWED]
        if reads or writes:
            self.meter.add("exit_bar", reads + writes)
            self.allowance.last_ps = self._host.clock.now()
        self.meter.add("interrupts", link[_SENT])
        self._client.account(reads, writes, cut=bool(link[_CUT]))
        link[_ANSWERED] = link[_DONE] = link[_SENT] = link[_OWED] = link[_CUT] = 0
        for i in range(owed.bit_length()):
            if owed >> i & 1:
                self.send(int(self._routes[i]["guest_address"]), int(self._routes[i]["guest_message"]))

    @property
    def waits(self) -> bool:
        """Whether it has to be served though nobody asks at its socket."""
        return self.mirror.waits

    def serve(self, budget: int, going: Going = lambda: True) -> int:
        """Answer up to `budget` messages while `going`, and fetch and send what goes by messages.

        Returns how much there was to do.
        """
        served = self.server.serve(budget, going)
        return served + (self.mirror.serve() if self._masters else 0)

    def close(self) -> None:
        """Take the function out of the virtual machine's hands, whether or not it lets go of what it has mapped."""
        self.function.device.end_mappings(self.function.rid)
        self.server.close()
        self.function.release()
        self.meter.release(self.function.rid)

    # What the library asks.

    def regions(self) -> dict[int, Region]:
        """Tell the BARs and the configuration space."""
        found = {int(RegionIndex.CONFIG): Region(CONFIG_SIZE)}
        for bar, size in self._bars.items():
            parts = self.function.mappings(bar)
            if parts:
                first = parts[0]
                areas = tuple((part.offset, int(part.bytes.size)) for part in parts)
                found[bar] = Region(size, fd=first.fd, fd_offset=first.fd_offset - first.offset, areas=areas)
            else:
                found[bar] = Region(size)
        return found

    def irqs(self) -> dict[int, Irq]:
        """Tell the interrupt types that QEMU handles: none. MSI-X goes by messages; errors and requests never come."""
        return {}

    def region_read(self, region: int, offset: int, count: int) -> Steps[bytes]:
        """Read registers or configuration space."""
        read = bytearray()
        for at, size in split(offset, count):
            if read:
                yield
            if region == RegionIndex.CONFIG:
                read += self.function.config.read(at, size).to_bytes(size, "little")
            else:
                read += self.function.read(region, at, size).to_bytes(size, "little")
        if region == RegionIndex.CONFIG and self._hidden and offset <= self._msix_at < offset + count:
            read[self._msix_at - offset] = _VENDOR_SPECIFIC
        return bytes(read)

    def region_write(self, region: int, offset: int, data: bytes) -> Steps[None]:
        """Write registers or configuration space."""
        done = 0
        for at, size in split(offset, len(data)):
            if done:
                yield
            value = int.from_bytes(data[done : done + size], "little")
            done += size
            if region == RegionIndex.CONFIG:
                self.function.config.write(at, size, value)
                self._follow_command()
            else:
                self.function.write(region, at, value, size)

    def reset(self) -> None:
        """Reset the function, as the machine's reset does; by now QEMU has looked."""
        self._hidden = False
        self._reset_function()

    def _reset_function(self) -> None:
        try:
            at = find_capability(self._config, Pcie)
        except VirtfnError:
            return
        if DevCap(self._config.read(at + Pcie.DEVCAP.offset, 4)).FLR:
            control = self._config.read(at + Pcie.DEVCTL.offset, 2)
            self._config.write(at + Pcie.DEVCTL.offset, 2, control | DevCtl.FLR.mask)
            self.function.follow_reset()
        self._follow_command()

    def connected(self, client: Client) -> None:
        """Take note of the virtual machine."""
        self._client = client
        self.mirror.connected(client)

    def disconnected(self) -> None:
        """Stop the function: nobody waits for its interrupts or its DMA, and the next machine looks again."""
        self._client = None
        self._hidden = True
        self.mirror.disconnected()
        self._reset_function()

    def dma_mapped(self, iova: int, size: int, prot: int) -> None:
        """Take note of memory, shared or not."""
        self.mirror.memory_came(iova, size, prot, shared=iova in self._placed)

    def dma_unmapped(self, iova: int, size: int) -> None:
        """Let go of memory."""
        self.mirror.memory_goes(iova)

    # Memory: `DmaMapper`.

    def map(self, fd: int, offset: int, iova: int, size: int, prot: int) -> Steps[None]:
        """Map a range of the virtual machine's memory into the domain, some tables' worth at a time.

        Raises VirtfnError as `map` of the domain does, when there is no room, or when much memory comes at addresses
        that no large page fits: everybody would wait while it is mapped piece by piece.
        """
        if (iova - offset) % CHUNK and size > _MOST_IN_PIECES:
            raise VirtfnError(
                f"{size:#x} bytes at {iova:#x} cannot start at {offset:#x} of the file: large pages do not fit",
                errno_name="EINVAL",
            )
        key, start = self._files.take(fd, offset + size)
        done: list[tuple[int, int]] = []
        large = (iova - start - offset) % CHUNK == 0
        try:
            for first, length in _pieces(iova, size, large):
                hpa = Hpa(start + offset + first - iova)
                self._domain.map(Iova(first), hpa, length, bool(prot & mmap.PROT_READ), bool(prot & mmap.PROT_WRITE))
                done.append((first, length))
                yield
        except (VirtfnError, GeneratorExit):
            for first, length in done:
                self._domain.unmap(Iova(first), length)
            self._files.drop(key)
            raise
        self._placed[iova] = key, done

    def unmap(self, iova: int, size: int) -> Steps[None]:
        """Take a range out of the domain, and out of every cache."""
        key, done = self._placed[iova]
        for first, length in done:
            self._domain.unmap(Iova(first), length)
            yield
        del self._placed[iova]
        self._files.drop(key)

    # Interrupts: `assign.Interrupts`.

    def route(self, rid: Rid, address: int, message: int) -> tuple[int, int]:
        """Make a message of the host by which `rid` sends the virtual machine its own message; return it."""
        if self._emulation is not None:
            made = self._emulation.route(rid, address, message)
        else:
            made = self._host.allocate_message(rid, lambda: self.send(address, message))
        free = np.flatnonzero(self._routes["guest_address"] == 0)
        if free.size and INTERRUPT_RANGE <= address < INTERRUPT_RANGE_END:
            self._routes[free[0]] = *made, address, message
        return made

    def unroute(self, address: int, message: int) -> None:
        """Take such a message back."""
        self._routes[(self._routes["address"] == address) & (self._routes["message"] == message)] = 0
        if self._emulation is not None:
            self._emulation.unroute(address, message)
        else:
            self._host.free_message(address, message)

    def send(self, address: int, message: int) -> None:
        """Send the machine a message of its own, if it is an interrupt."""
        if not self._masters:
            self._follow_command()  # a write that is being done now may have let it
        # What is no interrupt of the guest's would be a write to its memory past the IOMMU.
        if self._client is None or not INTERRUPT_RANGE <= address < INTERRUPT_RANGE_END or not self._masters:
            return
        self.mirror.post()  # what the interrupt is about comes first
        self.meter.add("interrupts")
        self._client.dma_write(address, message.to_bytes(4, "little"))

    def _follow_command(self) -> None:
        """Note whether the function masters the bus: QEMU writes a message only then, and each has to ask."""
        self._masters = bool(Command(self._config.read(Type0.COMMAND.offset, 2)).BME)


def _pieces(iova: int, size: int, large: bool) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces that take about as long to map: (first, bytes). large: large pages fit."""
    for first, length in _around_interrupts(iova, size):
        end = first + length
        while first < end:
            if large and first % CHUNK == 0 and end - first >= CHUNK:
                step = min(_GIB - first % _GIB, (end - first) // CHUNK * CHUNK)
            else:
                step = min(_PIECE - first % _PIECE, end - first)
            yield first, step
            first += step


def _around_interrupts(iova: int, size: int) -> list[tuple[int, int]]:
    """Cut the addresses that mean interrupts out of a range: (first, bytes)."""
    end = iova + size
    pieces = [(iova, min(end, INTERRUPT_RANGE)), (max(iova, INTERRUPT_RANGE_END), end)]
    return [(first, last - first) for first, last in pieces if last > first]
