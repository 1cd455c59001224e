"""The watch over VFs: what owners do too often is seen within a window, dealt with once, and undone by hand alone."""

from __future__ import annotations

from contextlib import suppress

import pytest

from unit.rig import BROADCAST, Rig, frame, lab_text, send, take
from virtfn.api.lab import LabError, parse_lab
from virtfn.api.labwatch import Watch, WatchLimit, watch_rules
from virtfn.drivers.igbvf import MailboxError, State
from virtfn.hw.i82576 import Message, Opcode, Regs, VfRegs, vf_vector
from virtfn.hw.i82576.fields import EITR, VTCTRL
from virtfn.hw.types import Iova, Mac
from virtfn.iovm.iovm import VfState
from virtfn.iovm.rules import Action, Kind, Limit
from virtfn.iovm.watch import Deed, Notice
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import VirtfnError

STRICT = {"spoof": 20, "dma-faults": 20, "mailbox": 20, "interrupts": 60, "descriptors": 2, "resets": 4}


def watch_text(action: str) -> str:
    limits = [f"{kind}: {{per-second: {limit}, action: {action}}}" for kind, limit in STRICT.items()]
    return "{" + ", ".join([*limits, "window-ms: 400"]) + "}"


class Watched(Rig):
    """A rig whose watch looks as time passes."""

    def __init__(self, action: str = "warn", **lab) -> None:
        super().__init__(policies=f"[{{id: 0, watch: {watch_text(action)}}}]", **lab)
        self.notices: list[Notice] = []
        self.machine.watch.on_notice = self.notices.append

    def __enter__(self) -> Watched:
        super().__enter__()
        unit = self.machine.host.iommu
        unit.on_fault = self.machine.watch.note_fault
        self.watch_for(200)
        self.notices.clear()
        return self

    def look(self) -> None:
        self.machine.watch.turn(self.clock.now())

    def watch_for(self, ms: int, work=lambda: None) -> None:
        """Let time pass, and the watch look; work: is done every 50 ms."""
        for _ in range(ms // 50):
            work()
            self.serve()
            self.clock.sleep(50 * MS_PS)
            self.look()

    @property
    def deeds(self) -> list[tuple[Deed, Kind | None]]:
        return [(n.deed, n.kind) for n in self.notices if n.deed is not Deed.SPOOFED]


def spoof(rig):
    a = rig.driver(0)
    send(a, *[frame(rig.driver(1).mac, Mac(0x1234))] * 5)


def ask(rig):
    with suppress(MailboxError):  # it waits, as soon as it is held back
        for _ in range(2):
            rig.mailbox(0).ask([Message.of(OPCODE=Opcode.SET_LPE).value, 1518])


def reset(rig):
    rig.registers(0).set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value)


def function_reset(rig):
    """What a guest does by a function level reset, its system's part of it included."""
    config = rig.guest(0).nics[0].function.config
    rig.guest(0).nics[0].function.config.write(0xA9, 1, 0x80)
    assert config.read(0x04, 2) & 6 == 0
    config.write(0x04, 2, 6)


def fault(rig):
    for page in range(3):
        assert not rig.machine.host.dma_write(rig.vf(0).rid, Iova(1 << 40 | page << 12), b"x")
    rig.machine.host.serve_iommu()


def interrupt(rig):
    for _ in range(8):
        rig.registers(0).set(VfRegs.VTEIMS, 4)
        rig.registers(0).set(VfRegs.VTEICS, 4)
        rig.guest(0).run_interrupts()


def nonsense(rig):
    """A descriptor of no kind; the card blocks the queue, and the driver resets it."""
    driver = rig.driver(0)
    if driver.state is not State.RUNNING or rig.nic.port.nic["port"]["blocked"]:
        driver.recover()
    d = driver.netdev
    send(driver, frame(BROADCAST, driver.mac))
    ring = view_bytes(int(d["tx_ring"]), int(d["tx_size"]) * 16)
    ring[((int(d["tx_tail"]) - 1) % int(d["tx_size"])) * 16 + 8 :][:8] = 0xFF


DOES = {
    Kind.SPOOF: spoof,
    Kind.DMA_FAULTS: fault,
    Kind.MAILBOX: ask,
    Kind.INTERRUPTS: interrupt,
    Kind.DESCRIPTORS: nonsense,
    Kind.RESETS: reset,
}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_seen_and_nothing_is_seen_without_it(kind):
    with Watched() as rig:
        rig.watch_for(900)
        assert rig.notices == []
        rig.watch_for(600, lambda: DOES[kind](rig))
        assert (Deed.WARNED, kind) in rig.deeds
        told = next(n for n in rig.notices if n.kind is kind and n.deed is Deed.WARNED)
        assert told.owner == "a"
        assert told.amount > told.limit == STRICT[kind.value]
        assert f"{kind.value}: " in told.why
        assert rig.deeds.count((Deed.WARNED, kind)) == 1, "once as long as it goes on"
        assert all(n.vf is rig.vf(0) for n in rig.notices)


def test_what_begins_after_a_long_calm_counts_as_much_as_what_goes_on():
    amounts = []
    for calm_ms in (200, 20_000):
        with Watched() as rig:
            rig.watch_for(calm_ms)
            began = rig.clock.now()
            while not rig.deeds:
                rig.watch_for(50, lambda: ask(rig))
            assert rig.clock.now() - began <= 400 * MS_PS
            amounts.append(rig.notices[0].amount)
    assert amounts[0] == amounts[1]


def test_in_a_calm_nobody_is_looked_at_one_by_one(monkeypatch):
    looked = []
    with Watched() as rig:
        rig.watch_for(900)
        look = rig.machine.watch._look
        monkeypatch.setattr(
            rig.machine.watch, "_look", lambda post, vf, *rest: looked.append(vf) or look(post, vf, *rest)
        )
        rig.watch_for(900)
        assert looked == []
        ask(rig)
        rig.watch_for(900)
        assert rig.vf(0) in looked
        done = len(looked)
        rig.watch_for(900)
        assert len(looked) == done, "and it is calm again"


def test_a_look_says_whether_something_was_done():
    with Watched() as rig:
        rig.clock.sleep(S_PS)
        assert rig.machine.watch.turn(rig.clock.now()) == 0
        for _ in range(30):
            ask(rig)
        rig.clock.sleep(S_PS)
        assert rig.machine.watch.turn(rig.clock.now()) == 1
        assert rig.machine.watch.turn(rig.clock.now()) == 0, "it is not time to"


def test_who_stops_and_begins_again_is_told_of_again():
    with Watched() as rig:
        for _ in range(2):
            rig.watch_for(500, lambda: ask(rig))
            rig.watch_for(900)
        assert rig.deeds == [(Deed.WARNED, Kind.MAILBOX)] * 2


def test_frames_that_are_not_its_own_are_told_of_below_the_limit_too():
    with Watched() as rig:
        a = rig.driver(0)
        for _ in range(3):
            send(a, frame(rig.driver(1).mac, Mac(0x1234)))
            rig.watch_for(300)
        assert rig.deeds == []
        assert [n.deed for n in rig.notices] == [Deed.SPOOFED]
        rig.watch_for(1000)
        assert sum(n.amount for n in rig.notices) == 3


def test_the_neighbour_has_limits_of_its_own():
    with Watched("quarantine") as rig:
        rig.watch_for(500, lambda: [rig.mailbox(1).ask([Opcode.SET_LPE, 1518]) for _ in range(2)])
        assert rig.notices == []
        assert rig.vf(1).state is VfState.ASSIGNED


def test_quarantine_holds_until_it_is_released():
    with Watched("quarantine") as rig:
        a, b = rig.driver(0), rig.driver(1)
        rig.watch_for(500, lambda: spoof(rig))
        assert rig.deeds == [(Deed.QUARANTINED, Kind.SPOOF)]
        assert rig.vf(0).state is VfState.QUARANTINED
        take(b)
        rig.watch_for(900)
        for again in (a.recover, lambda: reset(rig), lambda: function_reset(rig), rig.igb.reset):
            again()
            rig.serve()
            for driver in (a, b):
                driver.recover()
            send(a, frame(b.mac, a.mac))
            send(b, frame(a.mac, b.mac))
            rig.serve()
            assert take(a) == take(b) == []
            assert not a.link
            assert b.link
        rig.machine.watch.release(rig.vf(0))
        rig.serve()
        a.check_link()  # its function was reset, and nobody set its interrupts up anew
        assert a.link
        send(a, frame(b.mac, a.mac))
        rig.serve()
        assert frame(b.mac, a.mac) in take(b)
        rig.watch_for(900)
        assert rig.deeds[1:] == [(Deed.RELEASED, None)]
        assert rig.machine.watch.why(rig.vf(0)) == ""


def test_the_guest_sees_no_link_at_once():
    with Watched() as rig:
        a = rig.driver(0)
        rig.machine.watch.quarantine(rig.vf(0), "it smells")
        rig.serve()
        assert not a.link
        assert a.state is State.RUNNING
        assert rig.machine.watch.why(rig.vf(0)) == "it smells"
        rig.machine.watch.release(rig.vf(0))
        rig.serve()
        assert a.link
        assert a.state is State.RUNNING, "it has missed nothing, and need not be reset"


def test_a_vf_is_held_back_in_all_that_it_does():
    with Watched("throttle") as rig:
        peek, pool = rig.nic.port.registers.peek, rig.nic.port.nic["pools"][0]
        rig.watch_for(500, lambda: ask(rig))
        assert rig.deeds == [(Deed.THROTTLED, Kind.MAILBOX)]
        rig.nic.port.settle()
        assert int(pool["ps_per_byte"]) == pytest.approx(8_000_000 // 10, rel=0.01)
        for v in range(3):
            assert EITR(peek(Regs.EITR, vf_vector(0, v))).INTERVAL == 1000
        rig.registers(0).set(VfRegs.VTEITR, 0, 1)
        rig.watch_for(200)
        assert EITR(peek(Regs.EITR, vf_vector(0, 1))).INTERVAL == 1000, "its owner cannot undo it for long"
        rig.igb.set_rate(0, 500)
        rig.nic.port.settle()
        assert int(pool["ps_per_byte"]) == pytest.approx(8_000_000 // 10, rel=0.01)
        rig.machine.watch.release(rig.vf(0))
        rig.nic.port.settle()
        assert int(pool["ps_per_byte"]) == pytest.approx(8_000_000 // 500, rel=0.01)
        assert peek(Regs.MBVFIMR) == 0xFF


def test_messages_of_a_vf_that_is_held_back_wait_for_the_next_look():
    with Watched() as rig:
        rig.iovm.throttle(rig.vf(0), 10)
        box, served = rig.mailbox(0), rig.igb.mailbox.messages
        for _ in range(100):
            rig.registers(0).set(VfRegs.VMBMEM, Opcode.SET_LPE, 0)
            rig.registers(0).set(VfRegs.V2PMAILBOX, 1)
        told = rig.igb.mailbox.messages - served
        assert told == 32
        causes = rig.nic.port.nic["card"]["messages"]
        for _ in range(1000):
            rig.registers(0).set(VfRegs.V2PMAILBOX, 1)
        assert rig.nic.port.nic["card"]["messages"] == causes, "it does not even interrupt"
        assert rig.igb.mailbox.messages - served == told
        assert rig.mailbox(1).ask([Opcode.SET_LPE, 1518])[0] & Message.ACK.mask, "the others are served"
        assert rig.igb.mailbox.messages - served == told + 1
        rig.watch_for(200)
        assert rig.igb.mailbox.messages - served == told + 2
        assert box.ask([Opcode.SET_LPE, 1518])[0] & Message.ACK.mask


def test_the_next_owner_is_not_held_for_what_the_last_one_did():
    with Watched("quarantine") as rig:
        rig.watch_for(500, lambda: ask(rig))
        assert rig.vf(0).state is VfState.QUARANTINED
        rig.iovm.take_back(rig.vf(0), surprise=True)
        guest = rig.spare_guest()
        rig.iovm.assign(rig.vf(0), guest)
        guest.nics[0].driver.start()
        rig.watch_for(900)
        assert rig.vf(0).state is VfState.ASSIGNED
        assert rig.deeds == [(Deed.QUARANTINED, Kind.MAILBOX)]
        assert guest.nics[0].driver.link


def test_a_driver_that_cannot_hold_back_is_no_end_of_watching(monkeypatch):
    def refuse(n, mbps):
        raise VirtfnError("this card cannot", errno_name="EOPNOTSUPP")

    with Watched("throttle") as rig:
        monkeypatch.setattr(rig.igb, "throttle", refuse)
        rig.watch_for(500, lambda: ask(rig))
        assert rig.deeds == [(Deed.WARNED, Kind.MAILBOX)]
        assert "this card cannot" in rig.notices[0].why


def test_it_wants_its_turn_only_while_somebody_has_a_vf():
    with Watched() as rig:
        assert rig.machine.watch.due() is not None
        rig.iovm.take_back(rig.vf(0), rig.vf(1))
        assert rig.machine.watch.due() is None


# The keys of a lab.


def test_a_vf_s_keys_count_before_its_pf_s_and_those_before_the_defaults():
    of_vf = Watch(spoof=WatchLimit(action="quarantine"), window_ms=500)
    of_pf = Watch(spoof=WatchLimit(per_second=7, action="none"), mailbox=WatchLimit(per_second=9), throttle_mbps=3)
    rules = watch_rules(of_vf, of_pf)
    assert rules.limits[Kind.SPOOF] == Limit(7, Action.QUARANTINE)
    assert rules.limits[Kind.MAILBOX] == Limit(9, Action.WARN)
    assert (rules.window_ps, rules.throttle_mbps) == (S_PS // 2, 3)
    assert watch_rules(None, None).limits.keys() == set(Kind)


@pytest.mark.parametrize(
    ("watch", "words"),
    [
        ("{spof: {per-second: 1}}", r"watch.spof: is not a key here; did you mean spoof\?"),
        ("{spoof: {per_second: 1}}", r"spoof.per_second: is not a key here; did you mean per-second\?"),
        ("{spoof: {per-second: -1}}", "per-second: must be at least 0, not -1"),
        ("{spoof: {action: kill}}", "action: must be one of 'none', 'warn', 'throttle' or 'quarantine', not 'kill'"),
        ("{spoof: 5}", "spoof: must be a mapping of keys, not 5"),
        ("{window-ms: 1}", "window-ms: must be at least 100, not 1"),
    ],
)
def test_keys_that_are_wrong_are_named(watch, words):
    with pytest.raises(LabError, match=words) as caught:
        parse_lab(lab_text(policies=f"[{{id: 0, watch: {watch}}}]"))
    assert caught.value.line == 3


def test_a_pf_without_vfs_has_nothing_to_watch():
    text = lab_text().replace("sr-iov: {total-vfs: 4}", "watch: {}").replace("io: sriov, vf: 0", "io: split")
    with pytest.raises(LabError, match=r"pfs\[0\].watch: is about VFs, and pf0 has none"):
        parse_lab(text.replace("io: sriov, vf: 1", "io: split"))
