"""A guest for real, where there is a QEMU and an image: boot, agent, a function plugged in and out, the end."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Function, Machine, Qemu, QemuGuest, cache_folder, choose_acceleration, find_qemu, rest
from virtfn.vmm.qemu.image import build_image
from virtfn.vmm.vfio_user import Client, Irq, Region, RegionIndex, Server

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folders() -> None:
    """Use the user's own folders, unlike the tests beside this one: QEMU and image may be cached there."""


@pytest.fixture
def qemu() -> Qemu:
    try:
        return find_qemu()
    except VirtfnError as error:
        pytest.skip(str(error).partition("\n")[0])


@pytest.fixture
def image() -> Path:
    try:
        return build_image(cache=cache_folder()).kernel.parent
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")


class Scratchpad:
    """The smallest PCI function: no driver claims it, and BAR 0 is 4 KiB of memory."""

    def __init__(self) -> None:
        self.config = bytearray(256)
        struct.pack_into("<HHHHI", self.config, 0, 0x1234, 0x0BAD, 0, 0, 0xFF000000)
        self.memory = bytearray(4096)

    def regions(self) -> Mapping[int, Region]:
        return {RegionIndex.BAR0: Region(4096), RegionIndex.CONFIG: Region(256)}

    def irqs(self) -> Mapping[int, Irq]:
        return {}

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        return bytes((self.memory if region == RegionIndex.BAR0 else self.config)[offset : offset + count])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        if region == RegionIndex.BAR0:
            self.memory[offset : offset + len(data)] = data
        elif offset == 4:  # Command
            self.config[4:6] = data[:2]

    def reset(self) -> None:
        self.memory[:] = bytes(4096)

    def connected(self, client: Client) -> None: ...
    def disconnected(self) -> None: ...
    def dma_mapped(self, iova: int, size: int, prot: int) -> None: ...
    def dma_unmapped(self, iova: int, size: int) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "s", Scratchpad()) as server:
        yield server


def test_a_guest_from_boot_to_power_off(qemu: Qemu, image: Path, server: Server) -> None:
    def tick() -> None:
        if not server.serve():
            rest()

    acceleration = choose_acceleration(qemu, image / "vmlinuz")
    machine = Machine("boot-test", image / "vmlinuz", image / "initrd.gz", append="quiet virtfn.name=boot-test")
    with QemuGuest(machine, qemu, acceleration) as guest:
        guest.start(tick=tick)
        guest.agent.wait_ready(tick=tick)
        assert guest.agent.run("hostname", tick=tick).output == "boot-test\n"
        guest.console.wait_for("# $", tick=tick)
        guest.console.send(b"echo $((6 * 7))\n")
        guest.console.wait_for("^42", tick=tick)
        for _ in range(2):
            guest.plug(Function("n0", server.path), tick=tick)
            found = guest.agent.run(
                "for i in $(seq 50); do lspci -n -d 1234:0bad | grep . && exit; sleep 0.1; done; exit 1", tick=tick
            )
            assert found.status == 0, guest.console.text(20)
            guest.unplug("n0", tick=tick)
            assert guest.agent.run("lspci -n -d 1234:0bad", tick=tick).output == ""
        assert server.counters["connected"] == 2
        guest.agent.start("poweroff -f")
        assert guest.wait_end(tick=tick) == 0
    assert not guest.folder.exists()
