"""VLANs of a VF as its PF driver has them: none, its guest's own, the host's; what arrives whole, and what without."""

from __future__ import annotations

import pytest

from unit.rig import BROADCAST, Rig, frame, send, take
from virtfn.drivers.igbvf import MailboxError, State
from virtfn.hw.i82576 import Message, Opcode, Regs, VfRegs
from virtfn.hw.i82576.fields import VTCTRL
from virtfn.hw.i82576.rxtx import RPLOLR, VLVF, VMOLR

PRIORITY = 5 << 13


@pytest.fixture
def rig():
    """Guests a and b with VFs 0 and 1; nobody has VFs 2 and 3."""
    with Rig() as made:
        yield made


def with_tag(target: int, source: int, tci: int) -> bytes:
    """Make a frame with all 16 bits of a tag."""
    plain = frame(target, source)
    return plain[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + plain[12:]


def crosses(rig: Rig, tci: int | None, to: int | None = None) -> list[bytes]:
    """Send a frame from a to b, or to all; return what b gets."""
    a, b = rig.driver(0), rig.driver(1)
    take(b)
    target = b.mac if to is None else to
    send(a, frame(target, a.mac) if tci is None else with_tag(target, a.mac, tci))
    rig.serve()
    return take(b)


def tagged_words(rig: Rig, n: int) -> list[int]:
    """Tags that the device took out of the frames in VF `n`'s ring, of descriptors that are done."""
    return [int(q1) >> 48 & 0xFFFF for q1 in rig.driver(n).rings._received()[:, 1] if int(q1) & 8]


def vlans(rig: Rig, n: int) -> set[int]:
    entries = [VLVF(rig.nic.port.registers.peek(Regs.VLVF, i)) for i in range(Regs.VLVF.count)]
    return {e.VID for e in entries if e.VI_EN and e.POOLSEL >> n & 1}


def strips(rig: Rig, n: int) -> tuple[int, int]:
    """Whether tags are stripped for VF `n`: of frames for it alone, and for several."""
    peek = rig.nic.port.registers.peek
    return VMOLR(peek(Regs.VMOLR, n)).STRVLAN, RPLOLR(peek(Regs.RPLOLR)).STRVLAN


def asks(rig: Rig, n: int, vid: int, join: bool = True) -> bool:
    word = Message.of(OPCODE=Opcode.SET_VLAN, INFO=int(join)).value
    return bool(Message(rig.mailbox(n).ask([word, vid])[0]).ACK)


# VLAN 0.


@pytest.mark.parametrize("to", [None, BROADCAST])
@pytest.mark.parametrize("tci", [0, PRIORITY, 7 << 13 | 1 << 12])
def test_a_priority_tag_passes_between_guests_without_vlans(rig: Rig, tci: int, to: int | None):
    (got,) = crosses(rig, tci, to)
    assert got[12:16] == b"\x81\x00" + tci.to_bytes(2, "big")
    assert rig.drops(0) == rig.drops(1) == {}


def test_vlan_0_is_joined_at_each_reset_and_never_left(rig: Rig):
    assert vlans(rig, 0) == vlans(rig, 1) == {0}
    assert asks(rig, 1, 0, join=False), "as Linux's PF driver answers"
    assert vlans(rig, 1) == {0}
    rig.driver(0).set_vlan(0)
    rig.driver(0).set_vlan(0, member=False)
    rig.driver(0).recover()
    rig.registers(1).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
    rig.serve()
    rig.driver(1).recover()
    assert vlans(rig, 0) == vlans(rig, 1) == {0}
    assert len(crosses(rig, PRIORITY)) == 1
    rig.igb.reset()
    for n in (0, 1):
        rig.driver(n).recover()
    assert len(crosses(rig, PRIORITY)) == 1


def test_a_vf_that_nobody_has_is_in_no_vlan(rig: Rig):
    rig.iovm.take_back(rig.vf(1))
    assert vlans(rig, 1) == set()
    assert vlans(rig, 0) == {0}


def test_beside_vlans_of_its_own_a_guest_takes_priority_tags_and_none(rig: Rig):
    for n in (0, 1):
        rig.driver(n).set_vlan(5)
    assert [len(crosses(rig, tci)) for tci in (None, PRIORITY, 5, 6)] == [1, 1, 1, 0]


# A guest's own.


@pytest.mark.parametrize("to", [None, BROADCAST])
def test_a_guest_sees_the_priorities_of_its_own_vlans(rig: Rig, to: int | None):
    for n in (0, 1):
        rig.driver(n).set_vlan(5)
    (got,) = crosses(rig, PRIORITY | 5, to)
    assert got[12:16].hex() == "8100a005"


def test_only_a_port_vlan_is_stripped(rig: Rig):
    assert strips(rig, 0) == strips(rig, 1) == (0, 0)
    rig.driver(0).set_vlan(5)
    assert strips(rig, 0) == (0, 0)
    rig.igb.set_vlan(1, 100)
    # Frames for several have one rule for all: the port VLAN's, since its guest must not see the tag.
    assert (strips(rig, 0), strips(rig, 1)) == ((0, 1), (1, 1))
    rig.driver(1).recover()
    assert strips(rig, 1) == (1, 1)
    rig.igb.set_vlan(1, 0)
    assert strips(rig, 0) == strips(rig, 1) == (0, 0)


@pytest.mark.parametrize("end", ["release", "take back", "reset"])
def test_the_rule_for_several_goes_with_the_last_port_vlan(rig: Rig, end: str):
    rig.igb.set_vlan(1, 100)
    match end:
        case "release":
            rig.igb.release_vf(1)
        case "take back":
            rig.iovm.take_back(rig.vf(1))
        case "reset":
            rig.igb.policies[1].vlan = 0
            rig.igb.reset()
    assert strips(rig, 0) == (0, 0)


def test_a_tag_that_is_stripped_for_others_sake_is_put_back(rig: Rig):
    """VF 2 has a port VLAN, so that broadcasts lose their tags for all; the descriptor tells them."""
    for n in (0, 1):
        rig.driver(n).set_vlan(5)
    rig.igb.set_vlan(2, 100)
    a, b = rig.driver(0), rig.driver(1)
    send(a, with_tag(BROADCAST, a.mac, PRIORITY | 5))
    rig.serve()
    assert tagged_words(rig, 1) == [PRIORITY | 5]
    assert b.netdev["bounce"] != 0
    assert len(take(b)) == 1


# The host's.


def in_port_vlans(rig: Rig, *vids: int) -> None:
    for n, vid in enumerate(vids):
        rig.igb.set_vlan(n, vid)


def test_a_guests_vlans_come_back_after_the_port_vlan(rig: Rig):
    for n in (0, 1):
        rig.driver(n).set_vlan(5)
        rig.driver(n).set_vlan(100)
    for _ in range(2):
        in_port_vlans(rig, 100, 100)
        assert vlans(rig, 0) == {100}
        assert crosses(rig, None)[0][12:14] == b"\x88\xb6"
        in_port_vlans(rig, 101, 102)
        assert crosses(rig, None) == []
        in_port_vlans(rig, 0, 0)
        assert vlans(rig, 0) == vlans(rig, 1) == {0, 5, 100}
        assert [len(crosses(rig, tci)) for tci in (None, PRIORITY, 5, 100, 101)] == [1, 1, 1, 1, 0]
    assert [rig.driver(n).state for n in (0, 1)] == [State.RUNNING] * 2, "without a reset"


def test_what_a_guest_asked_for_in_vain_it_is_made_to_ask_for_again(rig: Rig):
    rig.igb.set_vlan(0, 100)
    assert not asks(rig, 0, 5)
    rig.igb.set_vlan(0, 101)
    rig.serve()
    assert rig.driver(0).state is State.RUNNING
    rig.igb.set_vlan(0, 0)
    rig.serve()
    assert rig.driver(0).state is State.RESET_NEEDED
    assert rig.driver(1).state is State.RUNNING
    rig.driver(0).recover()
    assert asks(rig, 0, 5)
    rig.igb.set_vlan(0, 100)
    rig.igb.set_vlan(0, 0)
    rig.serve()
    assert rig.driver(0).state is State.RUNNING, "it has not asked since"


def test_who_wants_nothing_any_more_is_left_in_peace(rig: Rig):
    rig.igb.set_vlan(0, 100)
    assert not asks(rig, 0, 5)
    assert not asks(rig, 0, 5, join=False)
    assert not asks(rig, 0, 0), "which it is in after it anyway"
    rig.igb.set_vlan(0, 0)
    rig.serve()
    assert rig.driver(0).state is State.RUNNING


def test_what_a_guest_leaves_meanwhile_does_not_come_back(rig: Rig):
    rig.driver(0).set_vlan(5)
    rig.driver(0).set_vlan(6)
    rig.igb.set_vlan(0, 100)
    assert not asks(rig, 0, 5, join=False)
    rig.igb.set_vlan(0, 0)
    assert vlans(rig, 0) == {0, 6}


def test_what_a_guest_leaves_meanwhile_is_not_the_hosts(rig: Rig):
    rig.igb.set_vlan(0, 100)
    assert not asks(rig, 0, 100, join=False)
    assert vlans(rig, 0) == {100}


def test_a_reset_of_the_guest_forgets_what_was_before(rig: Rig):
    rig.driver(0).set_vlan(5)
    rig.igb.set_vlan(0, 100)
    rig.driver(0).recover()
    rig.igb.set_vlan(0, 0)
    assert vlans(rig, 0) == {0}


def test_a_guest_in_a_port_vlan_may_send_priority_tags_and_tags_of_its_own_inside(rig: Rig):
    in_port_vlans(rig, 100, 100)
    assert [got[12:16].hex() for tci in (PRIORITY, 7) for got in crosses(rig, tci)] == ["8100a000", "81000007"]


def test_refusals_name_the_message(rig: Rig):
    rig.igb.set_vlan(0, 100)
    with pytest.raises(MailboxError, match="SET_VLAN"):
        rig.driver(0).set_vlan(5)
