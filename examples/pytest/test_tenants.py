"""What an operator's own project would test: its policy, on VFs that enforce it. `pytest examples/pytest`."""

from __future__ import annotations

from typing import Any

import pytest

import virtfn

LAB: dict[str, object] = {
    "pfs": [
        {
            "name": "pf0",
            "sr-iov": {
                "total-vfs": 4,
                "vfs": [
                    {"id": 0, "mac-address": "02:00:00:00:00:0a", "vlan-id": 10},
                    {"id": 1, "mac-address": "02:00:00:00:00:0b", "vlan-id": 10},
                    {"id": 2, "mac-address": "02:00:00:00:00:0c", "vlan-id": 20},
                ],
            },
        }
    ],
    "guests": [{"name": name, "memory-mib": 8, "nic": {"pf": "pf0", "vf": n}} for n, name in enumerate("abc")],
}


@pytest.fixture
def lab(virtfn_lab: Any) -> Any:
    """Three tenants on one PF: a and b in VLAN 10, c in VLAN 20."""
    return virtfn_lab(LAB)


def test_tenants_hear_their_own_vlan_alone(lab: Any) -> None:
    a, b, c = (lab.guest(name) for name in "abc")
    a.send(b, b"for b")
    a.send(c, b"not for c")
    assert [frame[14:19] for frame in b.received()] == [b"for b"]
    assert c.received() == []
    assert sum(a.vf.drops.values()) == 1


def test_a_stranger_s_address_is_stopped_and_counted(lab: Any) -> None:
    lab.guest("a").send("b", source="02:00:00:00:00:99")
    assert lab.guest("b").received() == []
    assert lab.vf("pf0/vf0").drops == {"mac-spoof": 1}
    lab.vf("pf0/vf0").set(spoof_check=False)
    lab.guest("a").send("b", source="02:00:00:00:00:99")
    assert len(lab.guest("b").received()) == 1


def test_policy_changes_under_a_running_guest(lab: Any) -> None:
    lab.vf("pf0/vf2").set(vlan=10)
    lab.guest("a").send("c", b"neighbours now")
    assert len(lab.guest("c").received()) == 1
    with pytest.raises(virtfn.VirtfnError, match="VLAN 5000"):
        lab.vf("pf0/vf2").set(vlan=5000)
    assert lab.vf("pf0/vf2").policy.vlan == 10


def test_frames_leave_by_the_wire_with_the_tag_of_their_tenant(lab: Any) -> None:
    uplink = lab.pf("pf0")
    uplink.received()  # from here on, somebody is at the other end
    lab.guest("c").send("02:00:00:00:00:77", b"to the world")
    (frame,) = uplink.received()
    assert frame[12:16] == b"\x81\x00\x00\x14"  # 802.1Q, VLAN 20
    uplink.send(bytes.fromhex("02000000000c 020000000077 8100 0014 88b6") + b"from the world")
    (heard,) = lab.guest("c").received()
    assert heard[12:14] == b"\x88\xb6"  # without the tag: it is none of the guest's business


def test_a_misbehaving_tenant_is_shut_off_and_the_others_go_on(lab: Any) -> None:
    a, b = lab.guest("a"), lab.guest("b")
    a.vf.quarantine("it smells")
    a.send(b, b"waits")
    assert b.received() == []
    assert [event["data"]["why"] for event in lab.events("VF_QUARANTINED")] == ["it smells"]
    a.vf.release()
    a.send(b, b"again")
    assert [frame[14:19] for frame in b.received()] == [b"waits", b"again"]  # its ring is as it was


def test_a_capture_shows_who_sent_what_to_whom(lab: Any) -> None:
    with lab.capture() as seen:
        lab.guest("a").send("b", b"x")
    assert [(frame.function, frame.sent) for frame in seen] == [("pf0/vf0", True), ("pf0/vf1", False)]
