"""An address is one function's alone: what guests try to take, what the host gives, and what is free again after it."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from unit.rig import Rig, frame, send, take
from virtfn.drivers.igbvf import MailboxError, State
from virtfn.drivers.policy import Claim, VfPolicy
from virtfn.hw.i82576 import MacAction, Message, Opcode, Regs, VfRegs, mac_words
from virtfn.hw.i82576.fields import VTCTRL
from virtfn.hw.pci import DevCtl, Pcie
from virtfn.hw.types import Mac, parse_mac
from virtfn.iovm.walk import capability_of
from virtfn.machine.clock import MS_PS
from virtfn.machine.ports import VirtfnError

FIRST, SECOND = (parse_mac(f"02:00:00:00:00:1{n}") for n in (0, 1))
GATEWAY, FIXED, OFFERED = (parse_mac(f"02:00:00:00:00:{n:02x}") for n in (0xFE, 0x55, 0x56))
STRANGER = parse_mac("02:00:00:00:00:99")
ACTIONS = (MacAction.SET, MacAction.ADD_FILTER)


@pytest.fixture
def rig():
    """Guests a and b with VFs 0 and 1; of VFs 2 and 3, which nobody has yet, the addresses are decided."""
    with Rig() as made:
        made.igb.set_mac(2, FIXED)
        made.igb.offer_mac(3, OFFERED)
        yield made


def asks(rig: Rig, n: int, action: MacAction, mac: Mac) -> bool:
    word = Message.of(OPCODE=Opcode.SET_MAC, INFO=action).value
    return bool(Message(rig.mailbox(n).ask([word, *mac_words(mac)])[0]).ACK)


def leads(rig: Rig, mac: Mac) -> int:
    """The pools that get frames to an address."""
    entries = [rig.nic.port.l2switch.address(entry) for entry in range(24)]
    return sum(rah.POOLSEL for found, rah in entries if rah.AV and found == mac)


def hears(rig: Rig, n: int, target: Mac) -> bool:
    """Tell whether guest `n` gets what the other of the two sends to an address."""
    take(rig.driver(n))
    send(rig.driver(1 - n), frame(target, rig.driver(1 - n).mac))
    rig.serve()
    return bool(take(rig.driver(n)))


def may_send_as(rig: Rig, n: int, source: Mac) -> bool:
    before = rig.drops(n).get("mac-spoof", 0)
    send(rig.driver(n), frame(rig.driver(1 - n).mac, source))
    rig.serve()
    take(rig.driver(1 - n))
    return rig.drops(n).get("mac-spoof", 0) == before


# What guests try.


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("wanted", ["neighbour", "fixed", "offered", "pf"])
def test_what_another_has_is_refused_with_trust_and_without(rig: Rig, wanted: str, trust: bool, action: MacAction):
    mac = {"neighbour": SECOND, "fixed": FIXED, "offered": OFFERED, "pf": rig.igb.mac}[wanted]
    before = leads(rig, mac)
    rig.igb.set_trust(0, trust)
    assert not asks(rig, 0, action, mac)
    assert leads(rig, mac) == before
    assert not before & 1
    assert not may_send_as(rig, 0, mac)
    if mac == SECOND:
        assert hears(rig, 1, SECOND)
        send(rig.driver(1), frame(SECOND, FIRST))
        rig.serve()
        assert take(rig.driver(0)) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_what_nobody_has_takes_trust(rig: Rig, action: MacAction):
    """The gateway's address is nobody's here: it is behind the wire."""
    assert not asks(rig, 0, action, GATEWAY)
    assert not hears(rig, 0, GATEWAY)
    assert not may_send_as(rig, 0, GATEWAY)
    rig.igb.set_trust(0, True)
    assert asks(rig, 0, action, GATEWAY)
    assert hears(rig, 0, GATEWAY)
    assert may_send_as(rig, 0, GATEWAY)
    assert not asks(rig, 1, action, GATEWAY)
    rig.igb.set_trust(1, True)
    assert not asks(rig, 1, action, GATEWAY), "the first trusted guest has it"


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("mac", [Mac(0), Mac((1 << 48) - 1), parse_mac("01:00:5e:00:00:01")])
def test_no_address_and_group_addresses_are_nobodys(rig: Rig, mac: Mac, trust: bool):
    rig.igb.set_trust(0, trust)
    assert not any(asks(rig, 0, action, mac) for action in ACTIONS)
    assert leads(rig, FIRST) == 1


def test_the_given_address_stays_a_trusted_guests_own_beside_what_it_took(rig: Rig):
    rig.igb.set_trust(0, True)
    rig.igb.set_trust(1, True)
    rig.driver(0).set_mac(STRANGER)
    assert not asks(rig, 1, MacAction.SET, FIRST)
    rig.driver(0).set_mac(FIRST)
    assert leads(rig, STRANGER) == 0


def test_what_a_guest_was_given_it_may_ask_for_again(rig: Rig):
    """So does Linux's igbvf after each reset; a filter for it takes no entry."""
    assert all(asks(rig, 0, action, FIRST) for action in ACTIONS)
    assert leads(rig, FIRST) == 1


def test_a_guest_without_an_address_gets_one_by_trust_only(rig: Rig):
    rig.igb.release_vf(0)
    rig.registers(0).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
    rig.driver(0).mac = Mac(0)
    with pytest.raises(MailboxError, match="refuses SET_MAC"):
        rig.driver(0).recover()
    rig.igb.set_trust(0, True)
    rig.driver(0).recover()
    assert rig.driver(0).mac & 3 == 2, "unicast, locally administered"
    assert rig.igb.addresses.of(0) == rig.driver(0).mac


def test_whoever_assigns_without_an_address_offers_one_of_its_own_making(rig: Rig):
    guest = rig.spare_guest()
    rig.iovm.take_back(rig.vf(1))
    rig.iovm.assign(rig.vf(1), guest)
    mac = guest.nics[0].driver.mac
    assert mac & 3 == 2
    assert leads(rig, mac) == 2
    assert rig.igb.addresses.of(1) == mac


def test_a_lab_offers_nobody_what_it_fixes_for_another():
    with Rig(policies='[{id: 1, mac-address: "02:00:00:00:00:10"}]') as rig:
        assert rig.driver(1).mac == FIRST
        assert rig.driver(0).mac == parse_mac("02:00:00:01:00:10")


# Who asks for what is another's is told of.


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("trust", [False, True])
def test_claims_of_what_is_anothers_are_told_and_counted(rig: Rig, trust: bool, action: MacAction):
    told: list[Claim] = []
    rig.igb.watch_claims(told.append)
    rig.igb.set_trust(0, trust)
    holders = {SECOND: 1, FIXED: 2, OFFERED: 3, rig.igb.mac: None}
    for mac in holders:
        assert not asks(rig, 0, action, mac)
    assert told == [Claim(0, mac, holder) for mac, holder in holders.items()]
    assert [rig.igb.claims(n) for n in range(4)] == [4, 0, 0, 0]
    rig.driver(0).recover()
    assert rig.igb.claims(0) == 4, "a reset does not make up for it"
    assert asks(rig, 0, action, FIRST), "its own"
    assert asks(rig, 0, action, STRANGER) == trust
    assert not asks(rig, 0, action, Mac((1 << 48) - 1))
    assert len(told) == 4, "what nobody has is no other's"


def test_a_vf_without_an_address_gets_none_that_the_host_fixed_for_another(rig: Rig):
    """Nothing was given to it, and it is not trusted: it sets and adds the neighbour's, and hears nothing of its."""
    told: list[Claim] = []
    rig.igb.watch_claims(told.append)
    rig.igb.set_mac(0, FIRST)
    rig.igb.release_vf(1)
    rig.registers(1).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)
    rig.driver(1).mac = FIRST
    with pytest.raises(MailboxError, match="refuses SET_MAC"):
        rig.driver(1).recover()
    assert not any(asks(rig, 1, action, FIRST) for action in ACTIONS)
    assert told == [Claim(1, FIRST, 0)] * 3
    assert leads(rig, FIRST) == 1


def test_claims_after_and_before_the_hosts_word(rig: Rig):
    """A trusted guest has an address first; the host gives it away; from then on the guest's wish is a claim."""
    told: list[Claim] = []
    rig.igb.watch_claims(told.append)
    rig.igb.set_trust(0, True)
    assert asks(rig, 0, MacAction.SET, STRANGER)
    assert asks(rig, 0, MacAction.SET, STRANGER), "twice"
    rig.igb.set_mac(1, STRANGER)
    rig.driver(0).recover()
    assert not any(asks(rig, 0, action, STRANGER) for action in ACTIONS)
    assert told == [Claim(0, STRANGER, 1)] * 2
    rig.igb.set_mac(1, Mac(0))
    assert asks(rig, 0, MacAction.ADD_FILTER, STRANGER), "the host has taken it back"


def test_a_further_address_is_its_first_owners(rig: Rig):
    told: list[Claim] = []
    rig.igb.watch_claims(told.append)
    for n in (0, 1):
        rig.igb.set_trust(n, True)
    assert asks(rig, 1, MacAction.ADD_FILTER, GATEWAY)
    assert not any(asks(rig, 0, action, GATEWAY) for action in ACTIONS)
    assert told == [Claim(0, GATEWAY, 1)] * 2


def test_the_next_guest_begins_without_claims(rig: Rig):
    asks(rig, 0, MacAction.SET, SECOND)
    rig.igb.release_vf(0)
    assert rig.igb.claims(0) == 0


# The host comes first.


@pytest.mark.parametrize("by", ["set_mac", "offer_mac"])
@pytest.mark.parametrize("how", ACTIONS)
def test_the_host_gives_away_what_a_trusted_guest_took(rig: Rig, how: MacAction, by: str):
    rig.igb.set_trust(0, True)
    assert asks(rig, 0, how, STRANGER)
    getattr(rig.igb, by)(2, STRANGER)
    assert leads(rig, STRANGER) == (4 if by == "set_mac" else 0), "VF 2 has a fixed one"
    assert not may_send_as(rig, 0, STRANGER)
    rig.driver(0).recover()
    assert not asks(rig, 0, how, STRANGER)


def test_a_guest_that_loses_its_address_is_told_and_learns_its_own(rig: Rig):
    rig.igb.set_trust(0, True)
    rig.driver(0).set_mac(STRANGER)
    rig.igb.set_mac(1, STRANGER)
    rig.serve()
    assert rig.driver(0).state is State.RESET_NEEDED
    assert rig.driver(1).state is State.RUNNING
    for n in (0, 1):
        rig.driver(n).recover()
    for n, mac in enumerate((FIRST, STRANGER)):
        assert rig.driver(n).mac == mac
        assert hears(rig, n, mac)


def test_without_trust_what_trust_allowed_ends(rig: Rig):
    rig.igb.set_trust(0, True)
    rig.driver(0).set_mac(STRANGER)
    rig.driver(0).add_mac(GATEWAY)
    rig.igb.set_trust(0, False)
    rig.serve()
    assert rig.driver(0).state is State.RESET_NEEDED
    assert (leads(rig, STRANGER), leads(rig, GATEWAY), leads(rig, FIRST)) == (0, 0, 1)
    rig.driver(0).recover()
    assert rig.driver(0).mac == FIRST
    assert rig.driver(0).further_macs == []


@pytest.mark.parametrize("call", ["set_mac", "offer_mac"])
@pytest.mark.parametrize("mac", ["neighbour", "fixed", "offered", "pf"])
def test_what_the_host_gave_it_gives_to_nobody_else(rig: Rig, call: str, mac: str):
    wanted = {"neighbour": SECOND, "fixed": FIXED, "offered": OFFERED, "pf": rig.igb.mac}[mac]
    with pytest.raises(VirtfnError, match="already") as caught:
        getattr(rig.igb, call)(0, wanted)
    assert caught.value.errno_name == "EADDRINUSE"
    assert leads(rig, FIRST) == 1
    getattr(rig.igb, call)(1, SECOND)  # to the one who has it


def test_an_address_no_longer_fixed_goes_back_to_the_offered_one(rig: Rig):
    rig.igb.set_mac(0, STRANGER)
    assert (leads(rig, STRANGER), leads(rig, FIRST)) == (1, 0)
    rig.igb.set_mac(0, Mac(0))
    assert (leads(rig, STRANGER), leads(rig, FIRST)) == (0, 1)


# Free again.


def test_further_addresses_are_free_after_their_guest_clears_them_or_resets(rig: Rig):
    for n in (0, 1):
        rig.igb.set_trust(n, True)
    flr = capability_of(rig.iovm.pcim.bus, rig.vf(0).rid, Pcie)
    for give_up in (
        lambda: asks(rig, 0, MacAction.CLEAR_FILTERS, Mac(0)),
        lambda: rig.registers(0).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value),
        lambda: flr.set(Pcie.DEVCTL, DevCtl.FLR.mask),
        lambda: rig.igb.reset(),
    ):
        assert asks(rig, 0, MacAction.ADD_FILTER, STRANGER)
        assert not asks(rig, 1, MacAction.SET, STRANGER)
        give_up()
        rig.clock.sleep(100 * MS_PS)
        rig.serve()
        if rig.driver(1).state is not State.RUNNING:
            rig.driver(1).recover()
        assert asks(rig, 1, MacAction.SET, STRANGER)
        assert leads(rig, STRANGER) == 2
        assert asks(rig, 1, MacAction.SET, SECOND)
        rig.driver(0).recover()


def test_everything_is_free_after_its_vf_is_taken_back(rig: Rig):
    rig.igb.set_trust(0, True)
    rig.driver(0).set_mac(STRANGER)
    rig.driver(0).add_mac(GATEWAY)
    rig.iovm.take_back(rig.vf(0))
    rig.igb.set_trust(1, True)
    assert all(asks(rig, 1, MacAction.SET, mac) for mac in (STRANGER, GATEWAY, FIRST))


def test_a_choice_outlives_resets_and_stays_its_guests(rig: Rig):
    rig.igb.set_policy(0, VfPolicy(mac=STRANGER, trust=True))
    rig.driver(0).set_mac(GATEWAY)
    rig.driver(0).recover()
    assert rig.driver(0).mac == GATEWAY
    rig.igb.reset()
    rig.igb.set_trust(1, True)
    rig.driver(1).recover()
    assert not any(asks(rig, 1, MacAction.SET, mac) for mac in (GATEWAY, STRANGER))
    rig.driver(0).recover()
    assert rig.driver(0).mac == GATEWAY
    assert rig.igb.policies[0].mac == STRANGER, "the host's word is the host's"


# Room for further addresses.


def test_three_further_addresses_and_no_more(rig: Rig):
    rig.igb.set_trust(0, True)
    driver = rig.driver(0)
    for n in (0, 1, 1, 2):
        driver.add_mac(Mac(STRANGER + (n << 40)))
    with pytest.raises(MailboxError, match="refuses SET_MAC"):
        driver.add_mac(Mac(STRANGER + (5 << 40)))
    assert hears(rig, 0, STRANGER)
    driver.clear_macs()
    assert not hears(rig, 0, STRANGER)


def test_no_guest_is_left_without_a_further_address():
    with Rig([("pf0", n) for n in range(8)], total_vfs=8, memory_mib=4) as rig:
        had = []
        for n in range(8):
            rig.igb.set_trust(n, True)
            had.append(sum(asks(rig, n, MacAction.ADD_FILTER, Mac(0x80 + 8 * n + k << 40 | 2)) for k in range(5)))
        assert had == [3, 3, 3, 2, 1, 1, 1, 1]
        assert sum(bool(rig.nic.port.registers.peek(Regs.RAH, entry) >> 31) for entry in range(1, 16)) == 15


def test_whatever_is_asked_each_address_leads_to_one_function():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Rig(total_vfs=8) as rig:
        igb, addresses = rig.igb, rig.igb.addresses
        some = [igb.mac, *(Mac(0x20 + k << 40 | 2) for k in range(12))]
        for step in range(3000):
            n, mac = rng.randrange(8), rng.choice(some)
            with suppress(VirtfnError):
                match rng.randrange(8):
                    case 0:
                        igb.set_mac(n, rng.choice((mac, Mac(0))))
                    case 1:
                        igb.offer_mac(n, mac)
                    case 2:
                        igb.set_trust(n, rng.random() < 0.7)
                    case 3 if step % 10 == 0:
                        igb.release_vf(n)
                    case 4 | 5:
                        addresses.take(n, mac)
                    case _:
                        addresses.add(n, mac)
            entries = [rig.nic.port.l2switch.address(entry) for entry in range(24)]
            found = [(int(had), rah.POOLSEL) for had, rah in entries if rah.AV or had == igb.mac]
            assert len(dict(found)) == len({*found}), "one function each"
            for m, policy in enumerate(igb.policies):
                own = {had for had, pools in found if pools >> m & 1 and had != igb.mac}
                assert policy.trust or own == {addresses.of(m)} - {0}
                assert addresses.of(m) == 0 or addresses.of(m) in own
