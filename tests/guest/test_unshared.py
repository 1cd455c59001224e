"""Linux's igbvf in a guest that shares none of its memory, beside one that shares all: every byte goes by messages."""

from __future__ import annotations

from collections import Counter

import pytest

from guest.rig import LinuxRig, address, guest_mac
from guest.test_igbvf import checksum_errors

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
WAYS = ((0, 1), (1, 0))


def mirrored(rig: LinuxRig, n: int) -> Counter[str]:
    return rig.vms[n].functions[rig.vfs[n].rid].mirror.counters


@pytest.fixture(scope="module")
def pair(qemu, image, logs):
    with LinuxRig(qemu, image, logs, unshared=[0]) as rig:
        for n in (0, 1):
            rig.up(n)
        yield rig
        rig.check()


def test_pings_of_every_size_are_answered(pair: LinuxRig):
    pair.ping(0, address(1), "-c 1")
    for n, peer in WAYS:
        for size in (1, 56, 1472, 4000):
            assert pair.ping(n, address(peer), f"-c 10 -i 0.02 -s {size}") == (10, 10)


def test_files_arrive_unaltered(pair: LinuxRig):
    for n, peer in WAYS:
        pair.run(
            n, "mkdir -p /tmp/www && head -c 4000003 /dev/urandom >/tmp/www/file && busybox httpd -p 4000 -h /tmp/www"
        )
        pair.run(peer, f"busybox wget -q -O /tmp/got http://{address(n)}:4000/file", timeout_s=120)
        assert pair.run(n, "sha256sum </tmp/www/file") == pair.run(peer, "sha256sum </tmp/got")


def test_iperf_runs_both_ways_and_only_one_guest_needs_messages(pair: LinuxRig):
    for n, peer in WAYS:
        assert pair.iperf(n, peer, "", seconds=2)["end"]["sum_received"]["bytes"] > 2e5  # a busy machine, too
        assert checksum_errors(pair, peer) == 0
    assert min(mirrored(pair, 0)[what] for what in ("reads", "writes")) > 1000
    assert not mirrored(pair, 0)["refused"]
    assert not mirrored(pair, 1)


def test_large_frames_pass_whole(pair: LinuxRig):
    for n in (0, 1):
        pair.run(n, "ip link set eth0 mtu 9000")
    for n, peer in WAYS:
        assert pair.ping(n, address(peer), "-c 10 -i 0.05 -M do -s 8972") == (10, 10)


def comes_back(rig: LinuxRig, n: int) -> None:
    rig.until(lambda: rig.attempt(n, "test -e /sys/class/net/eth0").status == 0, f"eth0 at vm{n}")
    rig.up(n)


def test_resets_and_removals_under_traffic(pair: LinuxRig):
    job = pair.start(1, f"ping -f -q {address(0)} >/tmp/flood & echo $! >/tmp/flood.pid; wait")
    pair.pause(500)
    pair.run(0, f"echo 1 >/sys/bus/pci/devices/{PCI}/reset && ip link set eth0 down && ip link set eth0 up")
    pair.up(0)
    for _ in range(3):
        pair.pause(500)
        pair.iovm.take_back(pair.vfs[0])
        pair.until(lambda: pair.attempt(0, "test -e /sys/class/net/eth0").status != 0, "the end of eth0")
        pair.iovm.assign(pair.vfs[0], pair.vms[0], mac=guest_mac(0))
        comes_back(pair, 0)
    pair.run(1, "kill -INT $(cat /tmp/flood.pid)")
    pair.finish(1, job)
    for n, peer in WAYS:
        assert pair.reaches(n, address(peer))


@pytest.mark.alone
def test_a_whole_card_tests_itself(qemu, image, logs):
    with LinuxRig(qemu, image, logs, guests=1, whole=True, unshared=[0]) as rig:
        rig.nic.port.set_wire(True, 0)
        rig.up(0)
        assert "The test result is PASS" in rig.run(0, "ethtool -t eth0 offline", timeout_s=120)
        rig.check()
