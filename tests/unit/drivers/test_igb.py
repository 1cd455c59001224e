"""The PF driver against VF drivers that talk by the book, and against ones that do not."""

from __future__ import annotations

import pytest

from unit.rig import BROADCAST, Rig, frame, send, take
from virtfn.drivers.igbvf import MailboxError, State
from virtfn.drivers.policy import LinkState, VfPolicy
from virtfn.hw.i82576 import MacAction, Message, Opcode, Regs, VfRegs, hash_words, mac_words, multicast_hash
from virtfn.hw.i82576.fields import V2PMAILBOX, VTCTRL
from virtfn.hw.i82576.rxtx import VLVF, VMOLR
from virtfn.hw.types import Mac, parse_mac
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.ports import VirtfnError

GROUP = parse_mac("01:00:5e:01:02:03")
OWN = parse_mac("02:00:00:00:00:10")
OTHER = parse_mac("02:00:00:00:00:77")
ACK, NACK, CTS = 0x80000000, 0x40000000, 0x20000000


@pytest.fixture
def rig():
    with Rig() as made:
        yield made


def pf_register(rig, decl, index=0):
    return rig.nic.port.registers.peek(decl, index)


def members(rig):
    """The pools of guests a and b in each VLAN; which entry has it is nobody's business."""
    entries = [VLVF(pf_register(rig, Regs.VLVF, i)) for i in range(32)]
    return {e.VID: e.POOLSEL & 3 for e in entries if e.VI_EN}


def vmolr(rig, n):
    return VMOLR(pf_register(rig, Regs.VMOLR, n))


# The protocol, word by word.


def test_reset_is_answered_with_the_address_and_no_cts(rig):
    rig.registers(0).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
    reply = rig.mailbox(0).ask([Opcode.RESET], 3)
    assert reply == [ACK | Opcode.RESET, *mac_words(parse_mac("02:00:00:00:00:10"))]
    assert pf_register(rig, Regs.VFRE) & 1
    assert pf_register(rig, Regs.VFTE) & 1


def test_reset_without_an_address_is_a_nack(rig):
    rig.igb.release_vf(0)
    rig.registers(0).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
    assert rig.mailbox(0).ask([Opcode.RESET], 3) == [NACK | Opcode.RESET, 0, 0]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([Opcode.SET_MAC, *mac_words(OWN)], ACK),
        ([Opcode.SET_MAC, *mac_words(OTHER)], NACK),
        ([Opcode.SET_MAC, *mac_words(GROUP)], NACK),
        ([Opcode.SET_MAC, 0, 0], NACK),
        ([Opcode.SET_MAC | MacAction.CLEAR_FILTERS << 16, 0, 0], ACK),
        ([Opcode.SET_MAC | MacAction.ADD_FILTER << 16, *mac_words(OWN)], ACK),
        ([Opcode.SET_MAC | MacAction.ADD_FILTER << 16, *mac_words(OTHER)], NACK),
        ([Opcode.SET_MAC | MacAction.ADD_FILTER << 16, *mac_words(GROUP)], NACK),
        ([Opcode.SET_MAC | 3 << 16, *mac_words(OTHER)], NACK),
        ([Opcode.SET_MULTICAST | 2 << 16, *hash_words([1, 2])], ACK),
        ([Opcode.SET_MULTICAST], ACK),
        ([Opcode.SET_VLAN | 1 << 16, 5], ACK),
        ([Opcode.SET_VLAN, 5], ACK),
        ([Opcode.SET_VLAN | 1 << 16, 4096], NACK),
        ([Opcode.SET_LPE, 9000], ACK),
        ([Opcode.SET_LPE, 10], NACK),
        ([Opcode.SET_LPE, 9729], NACK),
        ([Opcode.SET_PROMISC | 1 << 16], NACK),
        ([Opcode.SET_PROMISC | 2 << 16], NACK),
        ([Opcode.SET_PROMISC], ACK),
        ([0x0042 | 7 << 16], NACK),
        ([0], NACK),
        ([Opcode.CONTROL], NACK),
    ],
)
def test_every_answer_repeats_the_message_with_cts(rig, words, answer):
    assert rig.mailbox(0).ask(list(words)) == [words[0] | CTS | answer]


def test_before_reset_a_vf_is_told_no_once_in_two_seconds(rig):
    rig.registers(0).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
    box = rig.mailbox(0)
    assert box.ask([Opcode.SET_LPE, 1518]) == [NACK]
    start = rig.clock.now()
    with pytest.raises(MailboxError, match="does not answer"):
        box.ask([Opcode.SET_LPE, 1518])
    assert rig.clock.now() - start >= S_PS
    rig.clock.sleep(S_PS)
    assert box.ask([Opcode.SET_LPE, 1518]) == [NACK]


def test_a_vf_that_only_reads_is_told_no_as_well(rig):
    """So it goes with a driver that does not know of its reset, and looks whether the PF is still there."""
    regs = rig.registers(0)
    regs.set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
    regs.set(VfRegs.VMBMEM, Opcode.SET_LPE, 0)
    regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.ACK.mask)
    assert regs.get(VfRegs.VMBMEM, 0) == NACK
    regs.set(VfRegs.VMBMEM, 0, 0)
    regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.ACK.mask)
    assert regs.get(VfRegs.VMBMEM, 0) == 0, "not twice in two seconds"
    rig.clock.sleep(2 * S_PS)
    rig.mailbox(0).ask([Opcode.RESET], 3)
    regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.ACK.mask)
    assert regs.get(VfRegs.VMBMEM, 0) == ACK | Opcode.RESET, "nothing to say to one that may talk"


def test_a_vf_that_keeps_the_buffer_is_answered_all_the_same(rig):
    regs = rig.registers(0)
    regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.VFU.mask)
    regs.set(VfRegs.VMBMEM, Opcode.SET_LPE, 0)
    regs.set(VfRegs.VMBMEM, 1518, 1)
    regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.REQ.mask | V2PMAILBOX.VFU.mask)
    assert regs.get(VfRegs.VMBMEM, 0) == Opcode.SET_LPE | CTS | ACK


def test_a_flood_of_messages_harms_nobody(rig):
    box = rig.mailbox(0)
    for number in range(300):
        box.ask([number & 0xFFFF | (number & 0xFF) << 16, number, number * 7])
    send(rig.driver(1), frame(BROADCAST, rig.driver(1).mac))
    rig.serve()
    assert rig.driver(1).state is State.RUNNING


# Filters.


def test_groups_share_the_table_and_leave_with_their_pool(rig):
    rig.driver(0).set_multicast([GROUP, Mac(GROUP + (1 << 40))])
    rig.driver(1).set_multicast([GROUP])
    number = multicast_hash(GROUP)
    assert vmolr(rig, 0).ROMPE
    assert pf_register(rig, Regs.MTA, number >> 5) >> (number & 31) & 1
    rig.driver(0).set_multicast([])
    assert not vmolr(rig, 0).ROMPE
    assert pf_register(rig, Regs.MTA, number >> 5) >> (number & 31) & 1
    rig.driver(1).set_multicast([])
    assert not any(pf_register(rig, Regs.MTA, i) for i in range(128))


def test_only_words_of_the_table_that_change_are_written(rig):
    written = []
    rig.nic.on_access = lambda rid, regmap, offset, value, write: written.append(offset) if write else None
    rig.driver(0).set_multicast([GROUP])
    mta = [at for at in written if Regs.MTA.offset <= at < Regs.MTA.offset + 512]
    assert mta == [Regs.MTA.at(multicast_hash(GROUP) >> 5)]


def test_more_groups_than_fit_means_all_for_who_is_trusted(rig):
    many = [Mac(GROUP + (n << 40)) for n in range(31)]
    with pytest.raises(MailboxError, match="SET_MULTICAST"):
        rig.driver(0).set_multicast(many)
    assert (vmolr(rig, 0).ROMPE, vmolr(rig, 0).MPME) == (1, 0), "the first 30"
    rig.igb.set_trust(0, True)
    rig.driver(0).set_multicast(many)
    assert vmolr(rig, 0).MPME
    rig.driver(0).set_multicast([GROUP])
    assert not vmolr(rig, 0).MPME


def test_promiscuous_for_groups_survives_a_new_list(rig):
    rig.igb.set_trust(0, True)
    rig.driver(0).set_promiscuous(False, True)
    rig.driver(0).set_multicast([GROUP])
    assert vmolr(rig, 0).MPME
    rig.driver(0).set_promiscuous(False, False)
    assert not vmolr(rig, 0).MPME
    assert vmolr(rig, 0).ROMPE


# Policy.


def test_an_address_of_the_host_is_not_the_guests_to_change(rig):
    rig.igb.set_mac(0, OTHER)
    rig.driver(0).recover()
    assert rig.driver(0).mac == OTHER
    with pytest.raises(MailboxError, match="refuses SET_MAC"):
        rig.driver(0).set_mac(parse_mac("02:00:00:00:00:99"))
    with pytest.raises(MailboxError):
        rig.driver(0).add_mac(parse_mac("02:00:00:00:00:99"))
    rig.igb.set_trust(0, True)
    rig.driver(0).set_mac(parse_mac("02:00:00:00:00:99"))
    assert rig.driver(0).mac == parse_mac("02:00:00:00:00:99")


def test_an_address_taken_away_before_the_guest_used_it_leads_nowhere(rig):
    rig.igb.set_mac(3, OTHER)
    rig.igb.set_mac(3, Mac(0))
    assert all(rig.nic.port.l2switch.address(entry)[0] != OTHER for entry in range(24))


def test_promiscuity_needs_trust_and_ends_with_it(rig):
    with pytest.raises(MailboxError, match="SET_PROMISC"):
        rig.driver(0).set_promiscuous(True, False)
    with pytest.raises(MailboxError, match="SET_PROMISC"):
        rig.driver(0).set_promiscuous(False, True)
    rig.igb.set_trust(0, True)
    rig.driver(0).set_promiscuous(True, True)
    send(rig.driver(1), frame(OTHER, rig.driver(1).mac))
    rig.serve()
    assert len(take(rig.driver(0))) == 1
    rig.igb.set_trust(0, False)
    assert not vmolr(rig, 0).ROPE
    assert not vmolr(rig, 0).MPME
    send(rig.driver(1), frame(OTHER, rig.driver(1).mac))
    rig.serve()
    assert take(rig.driver(0)) == []


def test_a_strange_source_is_dropped_and_counted(rig):
    a, b = rig.driver(0), rig.driver(1)
    send(a, frame(b.mac, OTHER), frame(b.mac, a.mac))
    rig.serve()
    assert len(take(b)) == 1
    assert rig.drops(0) == {"mac-spoof": 1}
    assert rig.igb.misbehaved == {0: 1}
    rig.igb.set_spoof_check(0, False)
    send(a, frame(b.mac, OTHER))
    rig.serve()
    assert len(take(b)) == 1


def test_a_strange_vlan_is_dropped_and_counted(rig):
    a, b = rig.driver(0), rig.driver(1)
    b.set_vlan(7)
    send(a, frame(b.mac, a.mac, vid=7))
    rig.serve()
    assert rig.drops(0) == {"vlan-spoof": 1}
    a.set_vlan(7)
    send(a, frame(b.mac, a.mac, vid=7))
    rig.serve()
    assert len(take(b)) == 1


def test_port_vlans_isolate_and_are_invisible():
    with Rig([("pf0", n) for n in range(4)]) as rig:
        for n, vid in enumerate((10, 10, 20, 20)):
            rig.igb.set_vlan(n, vid, qos=3)
        a, b, c, d = (rig.driver(i) for i in range(4))
        rig.nic.start_capture()
        plain = frame(b.mac, a.mac, b"in the same VLAN")
        send(a, plain, frame(c.mac, a.mac), frame(BROADCAST, a.mac))
        rig.serve()
        assert take(b) == [plain, frame(BROADCAST, a.mac)]
        assert take(c) == take(d) == []
        assert sum(rig.drops(0).values()) == 1
        sent = [bytes(body) for pool, out, _, body in rig.nic.take_capture() if pool == 0 and out]
        assert all(body[12:16] == bytes((0x81, 0, 3 << 5, 10)) for body in sent)
        with pytest.raises(MailboxError, match="SET_VLAN"):
            a.set_vlan(20)
        # A tag of the guest's own goes inside the host's: no way out.
        send(a, frame(c.mac, a.mac, vid=20))
        rig.serve()
        assert take(c) == []
        rig.igb.set_vlan(0, 0)
        send(a, frame(b.mac, a.mac))
        rig.serve()
        assert take(b) == []


def test_a_port_vlan_ends_the_memberships_of_before(rig):
    rig.driver(0).set_vlan(5)
    rig.igb.set_vlan(0, 9)
    entries = [VLVF(pf_register(rig, Regs.VLVF, i)) for i in range(32)]
    assert [e.VID for e in entries if e.VI_EN and e.POOLSEL & 1] == [9]
    rig.driver(0).recover()
    assert rig.driver(0).vlans == []
    assert rig.driver(0).state is State.RUNNING


@pytest.mark.parametrize("mbps", [10, 100, 500])
def test_a_rate_holds_within_five_percent(rig, mbps):
    rig.igb.set_rate(0, mbps)
    a, b = rig.driver(0), rig.driver(1)
    body = frame(b.mac, a.mac, length=1514)
    sent = received = 0
    start = None
    while received < 600:
        if sent - received < 64:
            send(a, *[body] * 32)
            sent += 32
        rig.serve(1)
        received += len(take(b))
        if start is None and received >= 150:  # the credit of an idle sender, 2 ms, is used up first
            start = rig.clock.now(), received
        rig.clock.sleep(MS_PS // 50)
    seconds = (rig.clock.now() - start[0]) / S_PS
    rate = (received - start[1]) * 1518 * 8 / seconds / 1e6
    assert rate == pytest.approx(mbps, rel=0.05)


def test_what_cannot_be_is_refused_by_name(rig):
    for refused, errno in (
        (lambda: rig.igb.set_rate(0, 1001), "EINVAL"),
        (lambda: rig.igb.set_vlan(0, 4095), "EINVAL"),
        (lambda: rig.igb.set_vlan(0, 5, 8), "EINVAL"),
        (lambda: rig.igb.set_mac(0, GROUP), "EINVAL"),
        (lambda: rig.igb.offer_mac(0, Mac(0)), "EINVAL"),
        (lambda: rig.igb.set_mac(4, OTHER), "EINVAL"),
        (lambda: rig.igb.stop_vf(-1), "EINVAL"),
        (lambda: rig.igb.start(9), "ERANGE"),
    ):
        with pytest.raises(VirtfnError) as caught:
            refused()
        assert caught.value.errno_name == errno


# Starting, stopping, events.


def test_one_vf_stops_and_the_others_go_on():
    with Rig([("pf0", n) for n in range(3)]) as rig:
        a, b, c = (rig.driver(i) for i in range(3))
        rig.igb.stop_vf(1)
        send(a, frame(b.mac, a.mac), frame(c.mac, a.mac))
        send(b, frame(c.mac, b.mac))
        rig.serve()
        assert (len(take(b)), len(take(c))) == (0, 1)
        assert rig.drops(0) == {"rx-disabled": 1}
        b.recover()  # its driver may do what it likes
        send(b, frame(c.mac, b.mac))
        rig.serve()
        assert take(c) == []
        rig.igb.start_vf(1)
        rig.serve()
        assert len(take(c)) == 1


def test_all_vfs_stop_and_start(rig):
    a, b = rig.driver(0), rig.driver(1)
    for n in range(rig.igb.vfs):
        rig.igb.stop_vf(n)
    send(a, frame(b.mac, a.mac))
    rig.serve()
    assert take(b) == []
    assert pf_register(rig, Regs.VFTE) == 0
    rig.igb.start_vfs()
    rig.serve()
    assert len(take(b)) == 1
    assert pf_register(rig, Regs.VFTE) == 3  # the two that have introduced themselves


def test_a_reset_of_the_pf_keeps_policy_stops_and_offers(rig):
    rig.igb.set_policy(0, VfPolicy(mac=OTHER, vlan=10, qos=2, spoof_check=False, trust=True, max_tx_rate=100))
    rig.igb.stop_vf(1)
    names = (Regs.VMVIR, Regs.VMOLR, Regs.RPLOLR, Regs.RALX, Regs.RAHX, Regs.DTXSWC, Regs.VFTA)
    rig.driver(0).recover()
    rig.nic.port.settle()
    before = {d.name: [pf_register(rig, d, i) for i in range(d.count)] for d in names}
    vlans = members(rig)
    rate = int(rig.nic.port.nic["pools"][0]["ps_per_byte"])
    rig.igb.reset()
    rig.serve()
    for i in range(2):
        assert rig.driver(i).state is State.RESET_NEEDED
        rig.driver(i).recover()
    rig.nic.port.settle()
    assert {d.name: [pf_register(rig, d, i) for i in range(d.count)] for d in names} == before
    assert members(rig) == vlans == {0: 0b10, 10: 0b01}
    assert int(rig.nic.port.nic["pools"][0]["ps_per_byte"]) == rate
    assert pf_register(rig, Regs.VFTE) == 1
    assert rig.driver(1).mac == parse_mac("02:00:00:00:00:11")
    send(rig.driver(1), frame(BROADCAST, rig.driver(1).mac))
    rig.serve()
    assert take(rig.driver(0)) == []


def test_a_guest_that_probes_during_the_pfs_reset_is_told_to_wait(rig):
    rig.igb._reset()
    assert V2PMAILBOX(rig.registers(0).get(VfRegs.V2PMAILBOX)).RSTI
    with pytest.raises(VirtfnError, match="V2PMAILBOX stayed"):
        rig.driver(0).recover()
    assert rig.driver(0).state is State.RESET_NEEDED
    rig.igb.reset()
    rig.driver(0).recover()
    assert rig.driver(0).state is State.RUNNING


def test_going_away_reaches_the_guests_and_coming_back_too(rig):
    a, b = rig.driver(0), rig.driver(1)
    rig.igb.stop()
    rig.serve()
    assert a.state is State.RESET_NEEDED
    assert not a.link
    with pytest.raises(MailboxError):
        a.recover()
    rig.igb.reset()
    for driver in (a, b):
        driver.recover()
    assert a.link
    send(a, frame(b.mac, a.mac))
    rig.serve()
    assert len(take(b)) == 1


def test_a_link_that_goes_and_comes_reaches_the_guests(rig):
    assert rig.driver(0).link
    rig.nic.port.phy.set_link(False, 1000)
    rig.nic.serve()
    rig.serve()
    assert not rig.driver(0).link
    assert rig.driver(0).state is State.RUNNING
    rig.nic.port.phy.set_link(True, 1000)
    rig.serve()
    assert rig.driver(0).link
    assert rig.driver(1).link


def test_limits_follow_the_speed_of_the_link(rig):
    rig.igb.set_rate(0, 50)
    rig.nic.port.set_wire(False, 100)
    rig.serve()
    assert int(rig.nic.port.nic["pools"][0]["ps_per_byte"]) == pytest.approx(8_000_000 // 50, rel=0.01)


def test_message_words_are_what_the_device_counts(rig):
    before = rig.pf.nic.mailbox_messages(rig.vf(0).index)
    rig.mailbox(0).ask([Message.of(OPCODE=Opcode.SET_LPE).value, 1518])
    assert rig.pf.nic.mailbox_messages(rig.vf(0).index) == before + 2


def test_a_message_that_comes_with_a_receipt_gets_its_answer(rig: Rig):
    """A VF without a link, whose driver has read the answer before, and asks at once."""
    rig.igb.set_link_state(0, LinkState.DISABLE)
    regs = rig.registers(0)
    regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.ACK.mask | V2PMAILBOX.VFU.mask)
    regs.set(VfRegs.VMBMEM, Message.of(OPCODE=Opcode.RESET).value, 0)
    regs.set(VfRegs.V2PMAILBOX, V2PMAILBOX.REQ.mask)
    rig.igb.serve()
    answer = Message(regs.get(VfRegs.VMBMEM, 0))
    assert (answer.OPCODE, answer.ACK) == (Opcode.RESET, 1)
