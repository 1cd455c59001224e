"""Linux's own virtio_net at the switch's sockets: two guests, each feature that is offered, all its ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.rig import address
from guest.switchrig import SwitchRig, guest_mac
from virtfn.hw.types import format_mac
from virtfn.hw.virtio.net import Features
from virtfn.vmm.qemu import Qemu
from virtfn.vmm.qemu.image import Image

pytestmark = pytest.mark.guest
LARGE = 10_000  # bytes: no frame on the wire has so many


@pytest.fixture(scope="module")
def two(qemu: Qemu, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwitchRig]:
    with SwitchRig(qemu, image, tmp_path_factory.mktemp("switch")) as rig:
        yield rig


@pytest.fixture
def rig(two: SwitchRig) -> Iterator[SwitchRig]:
    for n in (0, 1):
        two.up(n)
    yield two
    for server in two.servers:
        assert not server.back.errors()
        assert not [name for name in server.counters if name.startswith("refused:")], server.last_refusal
    for n in (0, 1):
        said = two.run(n, "dmesg -c")
        assert "BUG:" not in said
        assert "bad gso" not in said
        assert "not a head" not in said
        assert "Call Trace" not in said or "rcu: INFO" in said, said[-4000:]


def sent(rig: SwitchRig, n: int) -> dict[str, int]:
    return rig.servers[n].back.counters()


def test_the_driver_agrees_on_all_that_is_offered(rig: SwitchRig) -> None:
    for n in (0, 1):
        back = rig.servers[n].back
        assert Features(int(back.row["own"]["features"])) == Features(back.offered)
        assert rig.run(n, "cat /sys/class/net/eth0/address").strip() == format_mac(guest_mac(n))


def test_pings_are_answered_both_ways(rig: SwitchRig) -> None:
    rig.ping(0, 1)
    rig.ping(1, 0, "-c 5 -i 0.05 -s 9000")
    assert rig.switch.bridge.addresses(rig.servers[0].port) == [guest_mac(0)]


def test_large_sends_cross_whole_by_one_copy(rig: SwitchRig) -> None:
    before = [sent(rig, n) for n in (0, 1)]
    report = rig.iperf(0, 1)
    assert report["end"]["sum_received"]["bytes"] > 1 << 20
    after = [sent(rig, n) for n in (0, 1)]
    frames = after[0]["tx_frames"] - before[0]["tx_frames"]
    assert (after[0]["tx_bytes"] - before[0]["tx_bytes"]) / frames > LARGE
    assert after[0]["tx_copies"] == before[0]["tx_copies"]
    assert after[1]["rx_copies"] - before[1]["rx_copies"] <= frames + 100


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [
        ("tx off", ""),
        ("tso off", ""),
        ("gso off tso off sg off tx off", ""),
        ("", "gro off"),
        ("tx on sg on tso on gso on", "tx off gro on"),
    ],
)
def test_streams_are_whole_with_each_combination_of_offloads(rig: SwitchRig, sender: str, receiver: str) -> None:
    try:
        for n, options in ((0, sender), (1, receiver)):
            if options:
                rig.run(n, f"ethtool -K eth0 {options}")
        whole(rig)
    finally:
        for n in (0, 1):
            rig.run(n, "ethtool -K eth0 tx on sg on tso on gso on gro on")


def whole(rig: SwitchRig) -> None:
    """Let the second guest fetch two million bytes from the first by TCP, and compare what came."""
    rig.run(0, "mkdir -p /tmp/w && head -c 2000000 /dev/urandom > /tmp/w/f; pidof httpd || httpd -p 8080 -h /tmp/w")
    digest = rig.run(0, "sha256sum < /tmp/w/f")
    assert rig.run(1, f"wget -q -O - http://{address(0)}:8080/f | sha256sum") == digest


def test_the_driver_may_go_and_come_back(rig: SwitchRig) -> None:
    device = rig.run(0, "basename $(readlink -f /sys/class/net/eth0/device)").strip()
    for _ in range(3):
        rig.run(0, f"echo {device} > /sys/bus/virtio/drivers/virtio_net/unbind")
        rig.until(lambda: not rig.servers[0].back.up, "the end of the rings")
        rig.run(0, f"echo {device} > /sys/bus/virtio/drivers/virtio_net/bind")
        rig.up(0)
        rig.ping(0, 1)


def test_a_guest_may_pause(rig: SwitchRig) -> None:
    rig.guests[0].pause(tick=rig.switch)
    assert not rig.servers[0].back.up
    rig.guests[0].resume(tick=rig.switch)
    rig.ping(0, 1)


def test_a_guest_may_reboot(rig: SwitchRig) -> None:
    before = rig.servers[0].counters["connected"]
    forgotten = rig.guests[0].agent.start("sleep 1000")
    rig.guests[0].qmp("system_reset", tick=rig.switch)
    rig.until(lambda: forgotten.lost, "the guest", timeout_s=120)
    rig.up(0)
    rig.ping(0, 1)
    assert rig.servers[0].counters["connected"] == before


def test_a_back_end_may_go_and_come_back(rig: SwitchRig) -> None:
    path = rig.servers[0].path
    rig.switch.remove(rig.servers[0])
    rig.until(lambda: not rig.carrier(0), "no link")
    rig.servers[0] = rig.switch.listen(path)
    rig.until(lambda: rig.servers[0].back.up, "the client")
    rig.until(lambda: rig.carrier(0), "a link")
    rig.ping(0, 1)
    rig.ping(1, 0)
    whole(rig)


def test_devices_with_less_get_what_they_bear(qemu: Qemu, image: Image, tmp_path: Path) -> None:
    """One without any offload for received frames, nor merged buffers; the other sends large frames all the same."""
    less = ",guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,mrg_rxbuf=off,event_idx=off,indirect_desc=off"
    with SwitchRig(qemu, image, tmp_path, options=("", less)) as rig:
        for n in (0, 1):
            rig.up(n)
        rig.ping(0, 1)
        whole(rig)
        assert sent(rig, 0)["tx_copies"] > 0, "cut here"
        rig.iperf(1, 0)
        assert not rig.servers[0].back.errors()
        assert not rig.servers[1].back.errors()
