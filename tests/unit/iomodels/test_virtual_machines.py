"""Interfaces of virtual machines by Split and Direct I/O: clients play QEMU, beside an embedded guest with a VF."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unit.vhostclient import Client
from unit.vmm.test_served import BAR0, CONFIG, MESSAGE_ADDRESS, enable
from unit.vmm.vfio_user.peer import Peer
from virtfn.api.lab import parse_lab
from virtfn.api.machine import LabPf, Machine
from virtfn.hw.types import Iova
from virtfn.machine.clock import MS_PS, WallClock
from virtfn.machine.meter import Meter
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.host import room_for
from virtfn.vmm.pump import Pump
from virtfn.vmm.qemu.machine import VirtioNic
from virtfn.vmm.served import ServedFunction, SharedFiles
from virtfn.vmm.vfio_user.messages import REGION_ACCESS, Command

LAB = """\
name: virtual-machines
pfs: [{name: p, sr-iov: {total-vfs: 2}}]
guests:
  - {name: e, memory-mib: 16, nic: {pf: p, vf: 0}}
  - {name: f, memory-mib: 16, nic: {pf: p, vf: 1}}
  - {name: s, vmm: qemu, nic: {pf: p, io: split}}
  - {name: t, vmm: qemu, nic: {pf: p, io: split}}
  - {name: d, vmm: qemu, nic: {pf: p, io: direct}}
workload: {kind: ping}
"""
GPIE, EICS, EIMS = 0x1514, 0x1520, 0x1524


class Vm:
    """A virtual machine whose devices are left to the test. refuses: QEMU takes none."""

    def __init__(self, rig: Rig, name: str, folder: Any) -> None:
        self.name, self.meter, self.refuses = name, Meter(), False
        self.guest = SimpleNamespace(folder=folder)
        self.functions: dict[int, ServedFunction] = {}
        self.networks: list[VirtioNic] = []
        self._host = rig.machine.host
        self._files = SharedFiles(self._host.memory, room_for(16 << 20))

    def populate(self, domain: object) -> None: ...

    def door(self, name: str) -> Any:
        return self.guest.folder / name

    def connect(self, network: VirtioNic) -> None:
        if self.refuses:
            raise VirtfnError("no")
        self.networks.append(network)

    def plug(self, device: Any, rid: Any, config: Any, domain: Any, *, mapped: bool, emulation: Any) -> None:
        if self.refuses:
            raise VirtfnError("no")
        path = self.guest.folder / "function"
        self.functions[rid] = ServedFunction(
            self._host, device, rid, config, domain, self._files, path, mapped=mapped, meter=self.meter,
            emulation=emulation,
        )  # fmt: skip

    def inject(self, rid: int, address: int, message: int) -> None:
        self.functions[rid].send(address, message)

    def close(self) -> None:
        for served in self.functions.values():
            served.close()
        self.functions.clear()
        self._files.close()


class Rig:
    def __init__(self, folder: Any) -> None:
        self.machine = Machine(parse_lab(LAB), WallClock())
        self.machine.start()
        self.folder = folder
        self.vms: list[Vm] = []
        self.clients: list[Client] = []
        self.plugs: dict[str, Any] = {}
        self.stacks: list[Any] = []
        self.pump = Pump(self.machine.host, [self.pf.nic], cast(Any, self.vms), [], self.stacks)

    @property
    def pf(self) -> LabPf:
        return self.machine.pfs[0]

    def plug(self, name: str, *, refuses: bool = False) -> Vm:
        guest = next(guest for guest in self.machine.lab.guests if guest.name == name)
        (self.folder / name).mkdir()
        vm = Vm(self, name, self.folder / name)
        self.vms.append(vm)
        vm.refuses = refuses
        model = self.machine.model(self.pf, guest.nic.io)
        self.stacks[:] = [self.pf.stack]
        self.plugs[name] = model.plug(cast(Any, vm), self.machine.wish(self.pf, guest))
        return vm

    def unplug(self, *names: str) -> None:
        for name in names:
            io = next(guest.nic.io for guest in self.machine.lab.guests if guest.name == name)
            next(vm for vm in self.vms if vm.name == name).close()
            self.pf.models[io].unplug([self.plugs[name]])

    def client(self, vm: Vm) -> Client:
        """Connect a front end, as QEMU does, served by the pump alone."""
        made = Client(cast(Any, SimpleNamespace(turn=lambda now: self.pump.turn())), vm.networks[0].socket)
        self.clients.append(made)
        made.connect()
        made.start()
        made.fill(8)
        self.run()
        return made

    def run(self, times: int = 4) -> None:
        for _ in range(times):
            self.pump()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for vm in self.vms:
            vm.close()
        self.machine.close()


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def frame(target: int, source: int, text: bytes) -> bytes:
    return (target.to_bytes(6, "little") + source.to_bytes(6, "little") + b"\x88\xb5" + text).ljust(60, b"\0")


def test_front_ends_at_sockets_reach_each_other_and_the_vf_of_an_embedded_guest(rig):
    s, t = (rig.client(rig.plug(name)) for name in "st")
    mac = {name: int(plug.mac) for name, plug in rig.plugs.items()}
    e, _ = rig.machine.guests
    s.transmit(frame(mac["t"], mac["s"], b"to t"))
    rig.run()
    assert [got[14:18] for got in t.received()] == [b"to t"]
    costs = rig.vms[1].meter.read()
    assert costs["copies"] == costs["interrupts"] == costs["notify_guest"] == 1
    assert rig.vms[1].meter.exits == 0
    before = int(e.driver.netdev["rx_frames"]) + rig.pf.nic.moved(e.vf.rid).rx_frames
    s.transmit(frame(int(e.driver.mac), mac["s"], b"to e"))
    rig.run()
    assert rig.pf.nic.moved(e.vf.rid).rx_frames == before + 1
    moved = rig.plugs["s"].moved()
    assert (moved.tx_frames, moved.rx_frames) == (2, 0)


def test_a_kick_is_served_without_python(rig):
    s, t = (rig.client(rig.plug(name)) for name in "st")
    rig.pump.turn = None  # whoever calls it fails
    s.transmit(frame(int(rig.plugs["t"].mac), int(rig.plugs["s"].mac), b"hello"))
    rig.pump.rest(MS_PS)
    assert [got[14:19] for got in t.received()] == [b"hello"]


def test_a_front_end_may_send_by_its_own_address_alone(rig):
    s, t = (rig.client(rig.plug(name)) for name in "st")
    s.transmit(frame(int(rig.plugs["t"].mac), int(rig.plugs["t"].mac), b"false"))
    rig.run()
    assert t.received() == []
    assert rig.plugs["s"].drops() == {"spoof": 1}


def test_an_emulated_card_is_an_ordinary_function_whose_interrupts_are_its_machines_own(rig):
    vm = rig.plug("d")
    (served,) = vm.functions.values()
    with Peer(served.server) as peer:
        assert peer.read(CONFIG, 0, 4) == bytes.fromhex("8680c910")
        assert peer.region_info(BAR0, 64)[1] == [], "nothing is mapped"
        enable(peer)
        low, high = (int.from_bytes(peer.read(BAR0, 0x5400 + at, 4), "little") for at in (0, 4))
        assert low | (high & 0xFFFF) << 32 == rig.plugs["d"].mac
        peer.write(BAR0, GPIE, (0x10).to_bytes(4, "little"))
        exits = vm.meter.exits
        peer.write(BAR0, EIMS, (2).to_bytes(4, "little"))
        peer.send(Command.REGION_WRITE, _write(EICS, 2), flags=0)
        rig.run()
        _, address, count, content = _message(peer)
        assert (address, count, content) == (MESSAGE_ADDRESS, 4, (0x4021).to_bytes(4, "little"))
        assert vm.meter.exits == exits + 2
        assert vm.meter["interrupts"] == 1


def test_a_card_that_writes_where_interrupts_are_interrupts_its_own_machine(rig):
    vm = rig.plug("d")
    (served,) = vm.functions.values()
    (emulated,) = rig.pf.stack.cards
    with Peer(served.server) as peer:
        enable(peer)
        emulated.dma_write(emulated.rid, Iova(MESSAGE_ADDRESS), (0x31).to_bytes(4, "little"))
        assert emulated.faults == 0
        _, address, _, content = _message(peer)
        assert (address, content) == (MESSAGE_ADDRESS, (0x31).to_bytes(4, "little"))
        assert emulated.dma_read(emulated.rid, Iova(0x1000), 4) is None, "no memory was given"
        assert emulated.faults == 1
    assert rig.machine.host.iommu.stats()["faults"] == 0


@pytest.mark.parametrize("name", ["s", "d"])
def test_what_qemu_does_not_take_leaves_nothing(rig, name):
    with pytest.raises(VirtfnError, match="no"):
        rig.plug(name, refuses=True)
    assert rig.pf.stack.cards == []
    assert rig.pf.stack.doors() == []
    rig.vms.clear()
    rig.folder /= "again"
    rig.folder.mkdir()
    rig.plug(name)


def test_interfaces_are_taken_back(rig):
    vms = [rig.plug(name) for name in "std"]
    rig.client(vms[0])
    rig.unplug("s", "t", "d")
    assert rig.pf.stack.cards == []
    assert rig.pf.stack.doors() == []
    assert len(rig.pf.stack.bridge._ports) == 1, "that of the PF's rings"
    rig.run()
    rig.machine.stop()


def _write(offset: int, value: int) -> bytes:
    return REGION_ACCESS.pack(offset, BAR0, 4) + value.to_bytes(4, "little")


def _message(peer: Peer) -> tuple[Any, int, int, bytes]:
    """Take messages until a vector comes."""
    while True:
        header, body, _ = peer.take()
        if header.command == Command.DMA_WRITE:
            return header, int.from_bytes(body[:8], "little"), int.from_bytes(body[8:16], "little"), body[16:]
