"""Asks a QEMU for what guests that make VFs need: a machine that never runs, with two devices that only listen.

    takes a function without a vendor, behind a card's other functions
    keeps to itself what it does not know: extended capabilities that come later
    tells where the window of configuration space is
    writes configuration spaces through I/O ports, by its monitor
    takes DMA of a device to that window for what it is: a write to another device's configuration space

None of this is promised by anybody, so each QEMU is asked. It takes a second or two; there is no guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from virtfn.hw.pci import (
    CONFIG_SIZE,
    EXTENDED_START,
    NO_DEVICE,
    ClassRevision,
    Command,
    ExtendedHeader,
    SrIov,
    Type0,
    Type1,
    capability_id,
)
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.hostcard import ConfigWrite
from virtfn.vmm.qemu.acceleration import Acceleration
from virtfn.vmm.qemu.find import Qemu
from virtfn.vmm.qemu.launch import QemuGuest
from virtfn.vmm.qemu.machine import Function, Machine, port_function
from virtfn.vmm.qemu.machinery import QemuMachinery, write_ports
from virtfn.vmm.qemu.processors import Execute
from virtfn.vmm.qemu.wait import Watch, rest
from virtfn.vmm.vfio_user import Client, Irq, Region, RegionIndex, Server, VfioUserDevice

__all__ = ["probe_host_cards"]

_WINDOW = 0xB000_0000
_PCIEXBAR = 0x60  # of the host bridge
_BUS, _VF = 1, 0x80
_BAR_BYTES = 16 << 10
_BY_PORTS, _BY_DMA = 0xFE10_0000, 0xFE20_0000
_ANSWER_S = 20.0


class _Listener(VfioUserDevice):
    """A device with one BAR that remembers its configuration space. vendor: FFFF for one that nobody finds."""

    def __init__(self, vendor: int) -> None:
        self.space = bytearray(CONFIG_SIZE)
        self.client: Client | None = None
        self.was_reset = False
        number, _ = capability_id(SrIov)
        for decl, value in (
            (Type0.VENDOR_ID, vendor),
            (Type0.DEVICE_ID, vendor),
            (Type0.CLASS_REVISION, ClassRevision.of(CLASS=0x020000).value),
        ):
            self._put(decl.offset, value.to_bytes(decl.size, "little"))
        self._put(EXTENDED_START, ExtendedHeader.of(ID=number, VERSION=1).value.to_bytes(4, "little"))

    def _put(self, at: int, content: bytes) -> None:
        self.space[at : at + len(content)] = content

    def regions(self) -> Mapping[int, Region]:
        """Tell the BAR and the configuration space."""
        return {0: Region(_BAR_BYTES), int(RegionIndex.CONFIG): Region(CONFIG_SIZE)}

    def irqs(self) -> Mapping[int, Irq]:
        """Tell that there are no interrupts."""
        return {}

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read what was written; extended capabilities once they are shown."""
        if region != RegionIndex.CONFIG:
            return bytes(count)
        found = bytes(self.space[offset : offset + count])
        shown = max(0, (CONFIG_SIZE if self.was_reset else EXTENDED_START) - offset)
        return found[:shown] + bytes(len(found[shown:]))

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Remember the BAR and Command."""
        if region == RegionIndex.CONFIG and (offset, len(data)) in ((Type0.BAR.offset, 4), (Type0.COMMAND.offset, 2)):
            self._put(offset, data)

    def reset(self) -> None:
        """Show everything."""
        self.was_reset = True

    def connected(self, client: Client) -> None:
        """Take note of QEMU."""
        self.client = client

    @property
    def bar(self) -> int:
        """What the BAR was told."""
        return int.from_bytes(self.space[Type0.BAR.offset : Type0.BAR.offset + 4], "little") & ~0xF


def probe_host_cards(qemu: Qemu) -> str:
    """Ask a QEMU; return what it cannot do, in words, or nothing if it can do all."""
    machine = Machine("probe", None, slots=1, memory_mib=64, native_hotplug=True, reboot=True, extra=("-S",))
    pf, vf = _Listener(0x8086), _Listener(NO_DEVICE)
    with QemuGuest(machine, qemu, Acceleration("tcg", "the guest never runs")) as guest:
        servers = [Server(guest.folder / name, device) for name, device in (("vf", vf), ("pf", pf))]
        try:
            return _Probe(guest, servers, pf, vf).ask()
        except VirtfnError as error:
            return " ".join(str(error).split())
        finally:
            guest.close(tick=lambda: _serve(servers))
            for server in servers:
                server.close()


def _serve(servers: list[Server]) -> None:
    for server in servers:
        server.serve()


class _Probe:
    def __init__(self, guest: QemuGuest, servers: list[Server], pf: _Listener, vf: _Listener) -> None:
        self._guest, self._servers, self._pf, self._vf = guest, servers, pf, vf

    def _tick(self) -> None:
        _serve(self._servers)
        rest()

    def _wait(self, future: Future[Any]) -> Any:
        Watch().until(future.done, "an answer of QEMU", timeout_s=_ANSWER_S, tick=self._tick)
        return future.result()

    def ask(self) -> str:
        """Go through all of it; return what does not work. Raises VirtfnError with QEMU's words."""
        self._guest.start(tick=self._tick)
        places = [Function("vf", self._servers[0].path, place=_VF), Function("pf", self._servers[1].path)]
        slot = self._guest.plug_card(places, tick=self._tick)
        port = port_function(slot)
        self._guest.qmp("system_reset", tick=self._tick)  # the slot has power from now on
        Watch().until(lambda: self._pf.was_reset, "a reset", timeout_s=_ANSWER_S, tick=self._tick)
        self._wait(self._guest.ask(lambda execute: _set_up(execute, port)))
        machinery = QemuMachinery(self._guest, port)
        if self._wait(machinery.config_window()) != _WINDOW:
            return "QEMU does not tell where the window of configuration space is"
        if self._vf.bar != _BY_PORTS:
            return "a write to configuration space through I/O ports does not reach a device"
        behind = _WINDOW + (_BUS << 20)
        self._write(behind + (_VF << 12) + Type0.BAR.offset, _BY_DMA)
        if self._vf.bar != _BY_DMA:
            return "DMA of a device does not reach the configuration space of another"
        shown = self._read(behind + EXTENDED_START)
        if shown != bytes(self._pf.space[EXTENDED_START : EXTENDED_START + 4]):
            return "extended capabilities that come after the first reset are not shown"
        return ""

    def _write(self, address: int, value: int) -> None:
        done: Future[int] = Future()
        if self._pf.client is not None:
            self._pf.client.dma_write(address, value.to_bytes(4, "little"), lambda _, error: done.set_result(error))
            self._wait(done)

    def _read(self, address: int) -> bytes:
        done: Future[bytes] = Future()
        if self._pf.client is None:
            return b""
        self._pf.client.dma_read(address, 4, lambda found, _: done.set_result(found))
        return bytes(self._wait(done))


async def _set_up(execute: Execute, port: int) -> None:
    """Do what firmware does: open the window, number the bus, let the PF master the bus; and place the VF's BAR."""
    master = Command.of(BME=1, MEM=1).value
    board = [
        ConfigWrite(0, _PCIEXBAR, 4, _WINDOW | 1),
        ConfigWrite(0, _PCIEXBAR + 4, 4, 0),
        ConfigWrite(port, Type1.PRIMARY.offset, 4, _BUS << 8 | _BUS << 16),
        ConfigWrite(port, Type1.COMMAND.offset, 2, master),
    ]
    await write_ports(execute, 0, board)
    card = [
        ConfigWrite(0, Type0.COMMAND.offset, 2, master),
        ConfigWrite(_VF, Type0.BAR.offset, 4, _BY_PORTS),
    ]
    await write_ports(execute, _BUS, card)
