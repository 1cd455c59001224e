"""Functions and guests that come, go and die, while two other guests talk and must not notice."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.rig import LinuxRig, address, guest_mac
from guest.test_igbvf_vlans import FAMILY, STRANGER, octets
from virtfn.hw.types import format_mac
from virtfn.iovm.iovm import VfState
from virtfn.kernels.i82576.state import DROP_DMA_FAULT, DROP_NO_DESCRIPTOR, DROP_QUEUE_DISABLED, DROP_RX_DISABLED
from virtfn.machine.places import runtime_folder

pytestmark = pytest.mark.guest

SERVER = Path(__file__).with_name("lone_server.py")


@pytest.fixture(scope="module")
def trio(qemu, image, logs):
    with LinuxRig(qemu, image, logs, guests=3, memory_mib=192) as rig:
        for n in range(3):
            rig.up(n)
        for n in range(2):
            # Else ARP asks for a guest that is gone by its address, three times: frames that the card drops and counts.
            rig.run(n, "echo 0 >/proc/sys/net/ipv4/neigh/eth0/ucast_solicit")
        yield rig
        rig.check()


@contextmanager
def undisturbed(rig: LinuxRig):
    """Guest 0 floods guest 1 with pings while the block runs, and the card drops none of them, nor their answers."""
    before = lost(rig)
    job = rig.start(0, f"ping -f -q {address(1)} >/tmp/flood & echo $! >/tmp/flood.pid; wait")
    rig.pause(300)
    try:
        yield
    finally:
        rig.run(0, "kill -INT $(cat /tmp/flood.pid)")
        rig.finish(0, job)
    said = rig.run(0, "cat /tmp/flood")
    sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", said).groups())
    assert sent > 20, said
    # On a busy machine ping sends every 10 ms without an answer; the last may be on their way when it ends.
    assert sent - received <= 10, said
    assert lost(rig) == before


def lost(rig: LinuxRig) -> list[int]:
    """Count what guests 0 and 1 should have received, and could not."""
    why = (DROP_NO_DESCRIPTOR, DROP_DMA_FAULT, DROP_QUEUE_DISABLED, DROP_RX_DISABLED)
    return [int(rig.nic.port.nic["drops"][pool, reason]) for pool in (0, 1) for reason in why]


def comes_back(rig: LinuxRig, n: int) -> None:
    rig.until(lambda: rig.attempt(n, "test -e /sys/class/net/eth0").status == 0, f"eth0 at vm{n}")
    rig.up(n)
    assert rig.reaches(n, address(0))


@pytest.mark.parametrize("stop", ["is paused", pytest.param("is down", marks=pytest.mark.long)])
def test_a_receiver_that_stops_delays_no_third(trio: LinuxRig, stop: str):
    """Guest 0 sends to guests 1 and 2 in turn, and so does the wire; 2 takes nothing, and 1 is not held up."""
    vm, frames = trio.vms[2], [octets(guest_mac(n)) + STRANGER + FAMILY + bytes(46) for n in (2, 1)]
    trio.run(0, f"ip neigh replace {address(2)} lladdr {trio.mac(2)} dev eth0 nud permanent")
    quick, before = delays(trio), trio.nic.drops(2)
    if stop == "is paused":
        vm.guest.pause(tick=trio.pump)
        trio.inject(*[frames[0]] * 1100)  # igbvf has 1024 descriptors
    else:
        trio.run(2, "ip link set eth0 down")
    try:
        beside = delays(trio)
        with trio.listen(1, "ether proto 0x88b5") as seen:
            trio.inject(*frames * 20)
    finally:
        vm.guest.resume(tick=trio.pump)
    comes_back(trio, 2)
    trio.run(0, f"ip neigh del {address(2)} dev eth0")
    reason = "no-descriptor" if stop == "is paused" else "queue-disabled"
    assert trio.nic.drops(2).get(reason, 0) - before.get(reason, 0) > 300, "what it does not take is counted"
    assert len(seen) == 20
    assert (len(quick), len(beside)) == (80, 80), "all are answered"
    assert statistics.median(beside) < 2 * statistics.median(quick), (quick, beside)


def delays(rig: LinuxRig) -> list[float]:
    """Let guest 0 send 400 frames to guest 2, and ping guest 1 beside that; return the round trips, in ms."""
    job = rig.start(0, f"ping -q -i 0.005 -c 400 -W 1 -s 1000 {address(2)} >/dev/null; true")
    said = rig.run(0, f"ping -i 0.02 -c 80 {address(1)}")
    rig.finish(0, job)
    return [float(ms) for ms in re.findall(r"time=([\d.]+) ms", said)]


def test_hot_remove_and_hot_add_under_traffic(trio: LinuxRig):
    vf, vm = trio.vfs[2], trio.vms[2]
    with undisturbed(trio):
        for _ in range(5):
            trio.iovm.take_back(vf)
            assert vf.state is VfState.FREE
            assert trio.attempt(2, "lspci -n | grep 8086:10ca; test -e /sys/class/net/eth0").status != 0
            trio.iovm.assign(vf, vm, mac=guest_mac(2))
            comes_back(trio, 2)
            assert trio.mac(2) == format_mac(guest_mac(2))
    assert vf.assignments == 6


def test_a_function_that_is_torn_out_by_surprise(trio: LinuxRig):
    vf, vm = trio.vfs[2], trio.vms[2]
    with undisturbed(trio):
        trio.iovm.take_back(vf, surprise=True)
        trio.until(lambda: trio.attempt(2, "test -e /sys/class/net/eth0").status != 0, "the end of eth0")
        trio.iovm.assign(vf, vm, mac=guest_mac(2))
        comes_back(trio, 2)


def test_a_function_that_is_torn_out_while_it_floods(trio: LinuxRig):
    vf, vm = trio.vfs[2], trio.vms[2]
    for _ in range(4):
        job = trio.start(2, f"ping -q -f -l 20 {address(0)} -c 1000000 -w 60")
        trio.pause(400)
        trio.iovm.take_back(vf, surprise=True)
        trio.until(lambda: trio.attempt(2, "test -e /sys/class/net/eth0").status != 0, "the end of eth0")
        trio.run(2, "killall ping; true")
        trio.finish(2, job)
        trio.iovm.assign(vf, vm, mac=guest_mac(2))
        comes_back(trio, 2)


def test_a_killed_guests_vf_goes_to_the_next(trio: LinuxRig):
    vf, dead = trio.vfs[2], trio.vms[2]
    with undisturbed(trio):
        os.kill(dead.guest.pid, signal.SIGKILL)
        trio.until(lambda: not dead.guest.running, "the end of QEMU")
        trio.until(lambda: not dead.functions[vf.rid].connected_now, "the end of its connection")
        trio.iovm.take_back(vf)
        trio.drop_guest(dead)
        assert vf.state is VfState.FREE
        heir = trio.add_guest("heir")
        trio.iovm.assign(vf, heir, mac=guest_mac(2))
        trio.boot(heir)
        comes_back(trio, 2)
    assert not trio.host.iommu.faults()


def test_a_server_that_hangs_up_leaves_a_word_and_a_guest_that_goes_on(trio: LinuxRig):
    vf, vm = trio.vfs[2], trio.vms[2]
    busy = trio.start(2, "for i in $(seq 100); do ethtool -d eth0 >/dev/null; done; true")
    with undisturbed(trio):
        vm.functions[vf.rid].server.close()  # with a request in its hands, most often
        trio.finish(2, busy)
        trio.attempt(2, "ping -c 1 -W 1 " + address(0))
        trio.until(lambda: "EOF" in vm.guest.errors or "Broken pipe" in vm.guest.errors, "a word of QEMU's")
        assert vm.guest.running
        assert trio.run(2, "uname -s").strip() == "Linux"
        trio.iovm.take_back(vf, surprise=True)
        trio.iovm.assign(vf, vm, mac=guest_mac(2))
        comes_back(trio, 2)


def test_nothing_is_left_of_a_server_that_is_killed(qemu, image, logs):
    """QEMU does not connect again, so it must not stay behind: the kernel ends it with its server."""
    argv = [sys.executable, str(SERVER), str(image.kernel), str(image.initrd), str(logs)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            said = server.stdout.readline().split()
            assert said[:1] == ["serving"], said
            pid, folder = int(said[1]), Path(said[2])
            assert folder.is_dir()
            assert runs(pid)
        finally:
            server.kill()
    deadline = time.monotonic() + 10
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)
    with LinuxRig(qemu, image, logs, guests=0) as rig:
        rig.add_guest("next")
        assert not folder.exists(), "the next start sweeps what a killed server left"
        assert len(list(runtime_folder().iterdir())) >= 1


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
