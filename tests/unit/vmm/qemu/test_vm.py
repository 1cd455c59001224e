"""Functions that come and go at a virtual machine whose QEMU is played here: what stays behind, and what goes wrong."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from unit.vmm.vfio_user.peer import Peer, ToldError, memory_file, open_fds, settle
from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.hw.types import Iova
from virtfn.iovm.iovm import VfState
from virtfn.machine.clock import S_PS, VirtualClock
from virtfn.machine.memory import CHUNK
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu.vm import QemuVm
from virtfn.vmm.vfio_user.messages import Command

LAB = """
name: played
pfs: [{name: pf0, model: 82576, sr-iov: {total-vfs: 4}}]
guests:
  - {name: a, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 1}}
workload: {kind: pairs, frames: 1000}
iommu: {ats: true, device-tlb-entries: 4096}
"""
BAR0, BAR3, CONFIG = 0, 3, 7
MSIX = 0x70


class PlayedQemu:
    """A QEMU that plugs functions in, looks at them as a guest would, and takes them out; or does something else.

    fate: at device_add "refuses", "dies" half way, or "leaves" with everything in place; at device_del "keeps" it.
    """

    def __init__(self, vm_of, folder: Path) -> None:
        self.machine = SimpleNamespace(name="a", memory_mib=256)
        self.folder = folder
        self.running = True
        self.at_rest = False
        self.waited = 0
        self.fate = ""
        self.memory = memory_file(4 * CHUNK)
        self.peers: dict[str, Peer] = {}
        self._vm_of = vm_of

    def plug(self, function, *, tick) -> None:
        served = self._vm_of().functions[int(function.id[1:], 16)]
        if self.fate == "refuses":
            raise VirtfnError("no free slot", errno_name="ENOSPC")
        peer = self.peers[function.id] = Peer(served.server)
        _, fds = peer.region_info(BAR0, 64)
        for fd in fds:
            os.close(fd)
        peer.map(0, 0xA0000, self.memory)
        peer.map(0x100000, 3 * CHUNK, self.memory, offset=0x100000)
        if self.fate == "dies":
            peer.sock.close()
            self.running = False
            raise VirtfnError("QEMU ended")
        peer.call(Command.DEVICE_RESET)
        for vector in range(3):
            for at, value in ((0, 0xFEE0_1000), (4, 0), (8, 0x4021 + vector), (12, 0)):
                peer.write(BAR3, vector * 16 + at, value.to_bytes(4, "little"))
        peer.write(CONFIG, MSIX + 2, (0x8000).to_bytes(2, "little"))
        peer.write(CONFIG, 4, (6).to_bytes(2, "little"))
        if self.fate == "leaves":
            peer.close()

    def plug_card(self, functions, *, tick) -> int:
        for function in functions:
            served = self._vm_of().functions[int(function.id[1:], 16)]
            peer = self.peers[function.id] = Peer(served.server)
            peer.call(Command.DEVICE_RESET)
            peer.map(0x100000, 3 * CHUNK, self.memory, offset=0x100000)
        return 0

    @contextmanager
    def stopped(self, *, timeout_s, tick) -> Iterator[None]:
        if not self.running:
            raise VirtfnError("QEMU ended")
        self.at_rest = True
        yield
        self.at_rest = False

    def letting_go(self, device) -> Iterator[None]:
        yield
        while self.fate == "keeps":
            yield
        if self.fate == "refuses to let go":
            raise VirtfnError("the guest does not let go", errno_name="EBUSY")
        self.peers[device].sock.close()

    def unplug(self, device, *, timeout_s, tick) -> None:
        assert not self.at_rest
        self.waited += 1
        if self.fate == "keeps":
            raise VirtfnError("the guest does not let go", errno_name="EBUSY")
        self.peers[device].sock.close()

    def close(self, *, tick) -> None:
        self.running = False
        for peer in self.peers.values():
            peer.sock.close()
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


class Setting:
    """A machine with four VFs, and a virtual machine."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine(parse_lab(LAB), VirtualClock())
        self.machine.start()
        self.host, self.iovm, self.nic = self.machine.host, self.machine.iovm, self.machine.pfs[0].nic
        self.folder = folder
        self.new_vm()

    def new_vm(self) -> None:
        self.qemu = PlayedQemu(lambda: self.vm, self.folder)
        self.vm = QemuVm(self.host, self.qemu, lambda: None)

    def vf(self, n: int):
        return self.iovm.vf(self.nic.pf_rid, n)

    def left(self) -> tuple[object, ...]:
        """What a function that has come and gone may not have left."""
        host, ats = self.host, self.nic.ats
        memory = host.remapping.pages.count(), len(host.memory._chunks), len(host.memory._pages)
        messages = host.interrupt_table.entries(), len(host.interrupts._waiting), len(host._vectors)
        requesters = sorted(host.iommu.device_tlbs), int((ats._tlb["entries"]["rights"] != 0).sum())
        users = sum(self.vm._files._users.values())
        states = [(vf.state, vf.vm) for vf in self.iovm.inventory()]
        return memory, messages, requesters, users, states, len(host.remapping.domains), open_fds(), self.sockets()

    def sockets(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def close(self) -> None:
        self.vm.close()
        self.machine.close()


@pytest.fixture
def setting(tmp_path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("cycles", "surprise"),
    [(40, False), (20, True), pytest.param(200, False, marks=[pytest.mark.slow, pytest.mark.long])],
)
def test_functions_that_come_and_go_leave_nothing(setting, cycles, surprise):
    for cycle in range(cycles):
        vf = setting.vf(cycle % 4)
        setting.iovm.assign(vf, setting.vm)
        assert setting.host.dma_read(vf.rid, Iova(0), 4) == bytes(4)
        assert len(setting.host.remapping.domains) == 1
        setting.iovm.take_back(vf, surprise=surprise)
        assert setting.host.dma_read(vf.rid, Iova(0), 4) is None
        if cycle == 3:
            before = setting.left()
    assert setting.left() == before
    setting.vm.close()
    assert not setting.vm._files._room._adopted


@pytest.mark.parametrize("fate", ["refuses", "dies", "leaves", "keeps"])
def test_whatever_becomes_of_qemu_the_vf_is_free_again_as_new(setting, fate):
    for _ in range(2):
        setting.iovm.assign(setting.vf(0), setting.vm)
        setting.iovm.take_back(setting.vf(0))
    before = setting.left()
    for _ in range(3):
        setting.qemu.fate, setting.qemu.running = fate, True
        if fate in ("refuses", "dies"):
            with pytest.raises(VirtfnError):
                setting.iovm.assign(setting.vf(0), setting.vm)
        else:
            setting.iovm.assign(setting.vf(0), setting.vm)
            setting.iovm.take_back(setting.vf(0))
        for peer in setting.qemu.peers.values():
            peer.sock.close()
        assert setting.vf(0).state is VfState.FREE
        assert not setting.vm.functions
        assert setting.left() == before
    setting.qemu.fate, setting.qemu.running = "", True
    setting.iovm.assign(setting.vf(0), setting.vm)
    assert setting.vm.functions[setting.vf(0).rid].connected_now


@pytest.mark.parametrize(("fate", "looks"), [("", 1), ("refuses to let go", 1), ("keeps", 60)])
def test_a_guest_lets_go_in_pieces_and_then_nobody_waits(setting, fate, looks):
    vf = setting.vf(0)
    for waited in (0, 1):
        setting.iovm.assign(vf, setting.vm)
        setting.qemu.fate = "" if waited else fate
        if not waited:
            for _ in setting.vm.let_go(vf.rid):
                setting.host.clock.sleep(S_PS // 2)
                looks -= 1
            assert looks == 0
        setting.iovm.take_back(vf)
        for peer in setting.qemu.peers.values():
            peer.sock.close()
        assert setting.qemu.waited == waited
        assert vf.state is VfState.FREE


def test_who_has_nothing_lets_go_of_nothing(setting):
    assert list(setting.vm.let_go(setting.vf(2).rid)) == []


def test_a_machine_that_was_closed_first_loses_its_functions_too(setting):
    setting.iovm.assign(setting.vf(1), setting.vm)
    setting.vm.close()
    assert setting.host.dma_read(setting.vf(1).rid, Iova(0), 4) is None
    setting.iovm.take_back(setting.vf(1), surprise=True)
    assert not setting.host.remapping.domains
    setting.new_vm()
    setting.iovm.assign(setting.vf(1), setting.vm)
    assert setting.host.dma_read(setting.vf(1).rid, Iova(0), 4) == bytes(4)


def test_a_client_that_misbehaves_loses_its_function_only(setting):
    setting.iovm.assign(setting.vf(0), setting.vm)
    setting.iovm.assign(setting.vf(1), setting.vm)
    first, second = setting.qemu.peers.values()
    first.raw(b"\xff" * 16)
    settle(setting.vm.functions[setting.vf(0).rid].server)
    assert [served.connected_now for served in setting.vm.functions.values()] == [False, True]
    with pytest.raises(ToldError):
        second.map(0, CHUNK, setting.qemu.memory)
    assert setting.host.dma_read(setting.vf(0).rid, Iova(0), 4) is None
    assert setting.host.dma_read(setting.vf(1).rid, Iova(0), 4) == bytes(4)
    setting.iovm.take_back(setting.vf(0), setting.vf(1))
    assert not setting.vm.functions


def test_a_machine_with_foreign_guests_may_have_descriptors_for_all():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with Machine(parse_lab(LAB), VirtualClock()):
            few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert few == min(1 << 16, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
