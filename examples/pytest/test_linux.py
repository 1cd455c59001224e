"""The same with Linux and its own driver on the VF; not run where there is no QEMU or image. One boot serves all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import virtfn
from virtfn.pytest.lab import Labs

LAB: dict[str, object] = {
    "pfs": [{"name": "pf0", "sr-iov": {"total-vfs": 2}}],
    "guests": [
        {"name": "vm", "vmm": "qemu", "nic": {"pf": "pf0", "vf": 0}},
        {"name": "b", "memory-mib": 8, "nic": {"pf": "pf0", "vf": 1}},
    ],
}
DEVICE = "$(ls /sys/bus/pci/drivers/igbvf/0*/net)"
"""What the guest calls its VF."""


@pytest.fixture(scope="module")
def booted(virtfn_qemu: None) -> Iterator[Any]:
    """A Linux guest, and an embedded one that the tests speak for."""
    with Labs() as labs:
        yield labs.bring_up(LAB)


@pytest.fixture
def lab(booted: Any) -> Iterator[Any]:
    """The same, with nothing left over from the test before, and no policy from this one to the next."""
    booted.guest("b").received()
    yield booted
    booted.vf("pf0/vf0").set(vlan=0)


def ask_for(lab: Any, address: str) -> list[bytes]:
    """Let Linux ask who has an address; return what the other guest hears of that."""
    with pytest.raises(virtfn.VirtfnError, match="status 1"):
        lab.guest("vm").run(f"ping -c 1 -W 1 {address}")
    return [frame for frame in lab.guest("b").received() if frame[12:14] == b"\x08\x06"]


def test_its_own_driver_sends_and_receives(lab: Any) -> None:
    vm, b = lab.guest("vm"), lab.guest("b")
    (question, *_) = ask_for(lab, "10.82.0.77")
    assert question[6:12] == bytes.fromhex(vm.mac.replace(":", ""))
    before = int(vm.run(f"cat /sys/class/net/{DEVICE}/statistics/rx_packets"))
    b.send(vm, b"for Linux", count=3)
    lab.wait_until(lambda: lab.vf("pf0/vf0").counters["rx_frames"] >= before + 3)
    assert int(vm.run(f"cat /sys/class/net/{DEVICE}/statistics/rx_packets")) >= before + 3


def test_a_port_vlan_that_it_knows_nothing_of_keeps_it_apart(lab: Any) -> None:
    lab.vf("pf0/vf0").set(vlan=10)
    assert ask_for(lab, "10.82.0.78") == []


def test_it_sees_no_link_while_it_is_shut_off(lab: Any) -> None:
    vm = lab.guest("vm")
    vm.vf.quarantine("it smells")
    lab.wait_until(lambda: vm.run(f"cat /sys/class/net/{DEVICE}/carrier") == "0\n", 30)
    vm.vf.release()
    lab.wait_until(lambda: vm.run(f"cat /sys/class/net/{DEVICE}/carrier") == "1\n", 30)
