"""The pytest plugin: what a test can do with a lab, and what it costs those who do without."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import virtfn
from virtfn.api.lab import LabError
from virtfn.machine.ports import VirtfnError
from virtfn.pytest.lab import PAIR

ROOT = Path(__file__).parents[3]
BROADCAST = "ff:ff:ff:ff:ff:ff"


def test_who_does_not_use_it_loads_nothing() -> None:
    heavy = "{'numba', 'numpy', 'pydantic', 'rich', 'virtfn.api', 'virtfn.pytest.lab'}"
    script = f"import sys, virtfn.pytest; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def test_pytest_finds_it_by_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"virtfn.pytest": "virtfn.pytest"}  # named as it is loaded by -p


def test_frames_go_and_come_in_order(virtfn_pair) -> None:
    a, b = virtfn_pair.guests
    a.send(b, b"one")
    a.send("b", b"two", count=2)
    a.send(b.mac, b"three")
    a.send(a.frame(BROADCAST, b"four"))
    assert [frame[14:].rstrip(b"\0") for frame in b.received()] == [b"one", b"two", b"two", b"three", b"four"]
    assert b.received() == a.received() == []
    assert a.vf.counters["tx_frames"] == b.vf.counters["rx_frames"] == 5
    assert virtfn_pair.snapshot()["guests"][0]["tx_frames"] == 5


def test_more_frames_than_a_ring_holds(virtfn_pair) -> None:
    a, b = virtfn_pair.guests
    a.send(b, b"x", count=1500)
    assert len(b.received()) == 1500
    assert b.vf.drops == {}


def test_a_rate_takes_its_time(virtfn_pair) -> None:
    a, b = virtfn_pair.guests
    a.vf.set(max_tx_rate=10)
    began = time.monotonic()
    a.send(b, b"x" * 1400, count=40)
    took = time.monotonic() - began
    assert len(b.received()) == 40
    assert took > 0.9 * 40 * 1418 * 8 / 10e6


def test_vlans_of_the_guest(virtfn_pair) -> None:
    a, b = virtfn_pair.guests
    for guest in (a, b):
        guest.driver.set_vlan(7)
    a.send(b, b"tagged", vlan=7)
    (frame,) = b.received()
    assert frame[12:16] == b"\x81\x00\x00\x07"


def test_the_wire_has_another_end(virtfn_pair) -> None:
    a, uplink = virtfn_pair.guest("a"), virtfn_pair.pf("pf0")
    assert uplink.received() == []
    a.send("02:00:00:00:00:77", b"out")
    assert [frame[14:17] for frame in uplink.received()] == [b"out"]
    uplink.send(bytes.fromhex(a.mac.replace(":", "") + "020000000077" + "88b6") + b"in", b"\xff" * 12 + b"\x88\xb6all")
    assert [frame[14:17].rstrip(b"\0") for frame in a.received()] == [b"in", b"all"]
    with pytest.raises(VirtfnError, match="a frame has 14 to 9724 bytes, not 3"):
        uplink.send(b"abc")


def test_the_cable_and_the_pf_s_driver_go_and_come_back(virtfn_pair) -> None:
    a, b = virtfn_pair.guests
    pf = virtfn_pair.pf()
    pf.received()
    pf.set_link(False)
    assert not a.link
    pf.set_link(True)
    assert a.link
    pf.reset()
    virtfn_pair.wait_until(lambda: a.link and b.link)
    a.send(b, b"after a reset")
    assert len(b.received()) == 1
    pf.unbind()
    assert not a.link
    pf.bind()
    virtfn_pair.wait_until(lambda: a.link and b.link)
    a.send(b, b"after a while")
    assert len(b.received()) == 1


def test_policy_is_changed_alone_or_not_at_all(virtfn_pair) -> None:
    vf = virtfn_pair.vf("pf0/vf1")
    vf.set(vlan=5, qos=3)
    vf.set(trust=True, mac="02:00:00:00:00:42")
    assert (vf.policy.vlan, vf.policy.qos, vf.policy.trust) == (5, 3, True)
    with pytest.raises(VirtfnError, match="VLAN 9999"):
        vf.set(trust=False, vlan=9999)
    assert (vf.policy.vlan, vf.policy.trust) == (5, True)
    with pytest.raises(VirtfnError, match="a VF has no setting speed"):
        vf.set(speed=3)
    assert (vf.name, vf.state, vf.guest.name, vf.address) == ("pf0/vf1", "assigned", "b", "0000:02:10.2")
    assert virtfn_pair.vf("pf0", 3).guest is None


def test_what_is_wrong_is_named(virtfn_pair, virtfn_lab) -> None:
    for call, words in [
        (lambda: virtfn_pair.guest("z"), "no guest called z; there are a, b"),
        (lambda: virtfn_pair.pf("pf7"), "no PF is named pf7; there are pf0"),
        (lambda: virtfn_pair.vf("pf0/vf9"), "pf0 has no VF 9: 4 are enabled"),
        (lambda: virtfn_pair.vf("pf0"), "is no VF like pf0/vf1"),
        (lambda: virtfn_pair.guest("a").run("ls"), "is embedded, and runs no commands"),
        (lambda: virtfn_pair.guest("a").send(b"short"), "a frame has 14 to [0-9]* bytes here, not 5"),
        (lambda: virtfn_pair.wait_until(lambda: False, 0.01), "has not become true within 0.01 s"),
        (lambda: virtfn_lab({"guests": [{"name": "x"}]}), "pfs: is required"),
        (lambda: virtfn_lab({**PAIR, "pfs": {1}}), "a lab is made of dictionaries"),
        (lambda: virtfn_lab(virtfn.builtin_lab(), name="x"), "sections go with a dictionary"),
    ]:
        with pytest.raises(VirtfnError, match=words):
            call()
    assert issubclass(LabError, VirtfnError)


def test_several_labs_of_any_kind(virtfn_lab, tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        "name: file\npfs: [{name: pf0, sr-iov: {total-vfs: 2}}]\nworkload: {kind: ping}\n"
        "guests: [{name: x, memory-mib: 8, nic: {pf: pf0, vf: 0}}, {name: y, memory-mib: 8, nic: {pf: pf0, vf: 1}}]\n"
    )
    labs = [virtfn_lab(path), virtfn_lab(path.read_text()), virtfn_lab(), virtfn_lab(name="other")]
    for lab in labs:
        first, second = lab.guests
        first.send(second, b"hello")
        assert len(second.received()) == 1


def test_a_lone_guest_and_its_wire(virtfn_lab) -> None:
    lab = virtfn_lab(PAIR, guests=[{"name": "x", "memory-mib": 8, "nic": {"pf": "pf0", "vf": 2}}])
    lab.pf().received()
    lab.guest("x").send("02:00:00:00:00:77", b"alone")
    assert len(lab.pf().received()) == 1
