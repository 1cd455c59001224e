"""Attempts on what the PF decides: whose address is whose, who hears what, and room in the tables that VFs share."""

from __future__ import annotations

from virtfn.hw.i82576 import MacAction, Opcode, Regs
from virtfn.hw.types import Mac
from virtfn.iomodels.attack import OUTSIDE, Attempt, Result, Stage, attempt
from virtfn.machine.ports import VirtfnError

__all__ = ["ATTEMPTS"]

GATEWAY = Mac(0x77_00_00_00_00_02)
"""Someone behind the wire, of whom the PF knows nothing."""
_MARK = b"for your eyes only"
_NO_MEMORY = "no memory is touched, and no message sent: "
_PORT_VLAN = 4000
_POSED = 8  # frames in the name of another


def overhear(stage: Stage, *targets: Mac) -> int:
    """Have the accomplice send to others; count the attacker's buffers that got it too."""
    attacker = stage.attacker
    attacker.arm_receive()
    for target in targets:
        stage.inject(target, _MARK)
    stage.pump()
    return sum(_MARK in frame for frame in attacker.received())


def pose(stage: Stage, source: Mac) -> int:
    """Send to the accomplice in another's name; return the frames that arrived."""
    attacker = stage.attacker
    attacker.arm_transmit()
    for _ in range(_POSED):
        attacker.send(attacker.frame(OUTSIDE, _MARK, source=source, length=60))
    stage.pump()
    return sum(_MARK in frame for frame in stage.take_heard())


def usurp(stage: Stage, *wanted: Mac) -> Result:
    """Ask for addresses of others by mailbox, get frames to each, and send from it."""
    attacker = stage.attacker
    refused = heard = posed = 0
    for mac in wanted:
        answers = [attacker.ask_for_mac(action, mac) for action in (MacAction.ADD_FILTER, MacAction.SET)]
        refused += answers.count(False)
        heard += overhear(stage, mac)
        posed += pose(stage, mac)
        if any(answers):
            attacker.ask_for_mac(MacAction.SET, attacker.mac)
            attacker.ask_for_mac(MacAction.CLEAR_FILTERS, attacker.mac)
    return Result(
        heard + posed,
        {"addresses_tried": len(wanted), "frames_overheard": heard, "frames_in_their_name": posed},
        {"mailbox: the PF answers NACK": refused},
    )


@attempt(
    "address-of-another",
    "asks the PF for other guests' MAC addresses and the PF's, as its own and as filters, to be these for others",
    _NO_MEMORY + "the PF gives an address to one function only",
)
def address_of_another(stage: Stage) -> Result:
    """Ask for what others of this machine have."""
    return usurp(stage, *(nic.driver.mac for victim in stage.victims for nic in victim.nics), stage.driver.mac)


@attempt(
    "address-of-the-gateway",
    "asks the PF for the MAC address of someone outside, to get what its neighbours send there",
    _NO_MEMORY + "without trust a guest has no address but the one that the host gave it",
)
def address_of_the_gateway(stage: Stage) -> Result:
    """Ask for what nobody of this machine has."""
    return usurp(stage, GATEWAY)


@attempt(
    "promiscuous",
    "asks the PF for everyone's frames",
    _NO_MEMORY + "the PF grants promiscuous mode to trusted VFs only",
)
def promiscuous(stage: Stage) -> Result:
    """Ask for promiscuous mode by mailbox."""
    granted = stage.attacker.ask_for_everything()
    heard = overhear(stage, stage.victims[0].nics[0].driver.mac, GATEWAY)
    return Result(heard, {"frames_overheard": heard}, {"mailbox: the PF answers NACK": int(not granted)})


@attempt(
    "spoofed-source",
    "sends frames with another guest's source address",
    "no memory of others is touched: the switch compares each sender with what the host chose",
)
def spoofed_source(stage: Stage) -> Result:
    """Send to the accomplice in a victim's name."""
    arrived = pose(stage, stage.victims[0].nics[0].driver.mac)
    return Result(arrived, {"frames_sent": _POSED, "frames_arrived": arrived})


@attempt(
    "all-vlans",
    "joins VLANs until the card's table is full, so that the host's port VLAN and its neighbours' find no room",
    _NO_MEMORY + "the PF keeps an entry for the port VLAN of each VF, and one for each other guest",
)
def all_vlans(stage: Stage) -> Result:
    """Join as many VLANs as can be had; then the host, and each neighbour, wants one."""
    stage.quiet()
    entries = Regs.VLVF.count
    joined = sum(stage.attacker.ask(Opcode.SET_VLAN, 1, vid) for vid in range(1, 2 * entries + 1))
    crowded_out = 0
    for number, victim in enumerate(stage.victims):
        rid, driver = victim.nics[0].function.rid, victim.nics[0].driver
        (vf,) = (vf for vf in stage.iovm.inventory() if vf.rid == rid)
        before = vf.policy
        try:
            if not before.vlan:
                driver.set_vlan(_PORT_VLAN + number)
                driver.set_vlan(_PORT_VLAN + number, False)
        except VirtfnError:
            crowded_out += 1
        try:
            stage.driver.set_vlan(vf.index, _PORT_VLAN - 1 - number)
        except VirtfnError:
            crowded_out += 1
        stage.driver.set_vlan(vf.index, before.vlan, before.qos)
    return Result(
        crowded_out,
        {"vlans_joined": joined, "crowded_out": crowded_out},
        {"mailbox: the PF answers NACK": 2 * entries - joined},
    )


ATTEMPTS: tuple[Attempt, ...] = (
    address_of_another,
    address_of_the_gateway,
    promiscuous,
    spoofed_source,
    all_vlans,
)
