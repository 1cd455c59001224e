"""The VF driver: interrupts that serve several frames, recovery under traffic, and life without mapped pages."""

from __future__ import annotations

import numpy as np
import pytest

from unit.rig import BROADCAST, Rig, frame, send, take
from virtfn.drivers.igbvf import RX_VECTOR, Igbvf, MailboxError, State
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.rxtx import VMOLR
from virtfn.hw.types import parse_mac
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.machine.clock import MS_PS, S_PS, US_PS
from virtfn.machine.ports import VirtfnError


@pytest.fixture
def rig():
    with Rig() as made:
        yield made


def check_all_accounted(rig, engine):
    """Every frame is where it should be, or a counter says who dropped it."""
    findings = engine.workload.findings()
    for g, found in enumerate(findings):
        assert found.corrupt == found.repeated == 0
        dropped = sum(sum(rig.drops(n).values()) for n in range(8))
        given_up = sum(driver.given_up for driver in engine._drivers())
        assert found.missing <= dropped + given_up, (g, found)


# Interrupts.


def test_a_throttle_lets_many_frames_share_an_interrupt(rig):
    a, b, guest = rig.driver(0), rig.driver(1), rig.guest(1)
    before, paced_us, total = guest.interrupts, 10, 500
    for _ in range(total):
        send(a, frame(b.mac, a.mac))
        rig.serve(1)
        if b.netdev["polling"]:
            take(b)
            b.idle()
        rig.clock.sleep(paced_us * US_PS)
    interrupts = guest.interrupts - before
    # The throttle is 122 us: twelve frames at this pace.
    assert interrupts == pytest.approx(total * paced_us / b.eitr_us, abs=3)


def test_without_a_throttle_each_frame_has_its_own(rig):
    a, b, guest = rig.driver(0), rig.driver(1), rig.guest(1)
    rig.registers(1).set(VfRegs.VTEITR, 0, RX_VECTOR)
    before = guest.interrupts
    for _ in range(50):
        send(a, frame(b.mac, a.mac))
        rig.serve(1)
        assert len(take(b)) == 1
        b.idle()
        rig.clock.sleep(10 * US_PS)
    assert guest.interrupts - before == 50


def test_no_wake_up_is_lost_between_the_last_poll_and_the_unmasking(rig):
    a, b, guest = rig.driver(0), rig.driver(1), rig.guest(1)
    send(a, frame(b.mac, a.mac))
    rig.serve()
    assert b.netdev["polling"] == 1
    take(b)
    assert take(b) == []  # the last, empty poll
    send(a, frame(b.mac, a.mac))
    rig.nic.serve()
    assert not guest.interrupted  # masked: the frame raises nothing now
    b.idle()
    rig.clock.sleep(MS_PS)
    rig.serve()
    assert b.netdev["polling"] == 1
    assert len(take(b)) == 1


def test_an_idle_guest_has_no_interrupts_and_is_woken_again(rig):
    engine = rig.engine("pairs", 200)
    assert engine.run()
    counts = [rig.guest(i).interrupts for i in range(2)]
    for _ in range(20):
        engine.step()
        rig.clock.sleep(MS_PS)
    assert [rig.guest(i).interrupts for i in range(2)] == counts
    send(rig.driver(0), frame(rig.driver(1).mac, rig.driver(0).mac))
    rig.serve()
    assert rig.guest(1).interrupts == counts[1] + 1


# Life.


def test_nonsense_parameters_are_refused(rig):
    for kwargs in ({"ring": 81}, {"ring": 72}, {"ring": 4104}, {"mtu": 67}, {"mtu": 9707}):
        with pytest.raises(VirtfnError) as caught:
            Igbvf(rig.registers(0).bar, rig.guest(0).dma, rig.clock, **kwargs)
        assert caught.value.errno_name == "EINVAL"


def test_a_guest_without_memory_is_told_and_loses_none(rig):
    guest = rig.spare_guest(mib=2, ring=4096)
    rig.iovm.assign(rig.vf(2), guest)
    driver = guest.nics[0].driver
    free = list(guest.dma._free)
    with pytest.raises(VirtfnError, match="memory left") as caught:
        driver.start()
    assert caught.value.errno_name == "ENOMEM"
    assert guest.dma._free == free
    with pytest.raises(VirtfnError, match="memory left"):
        driver.start()


def test_stop_and_start_keep_groups_vlans_and_addresses(rig):
    driver = rig.driver(0)
    other = parse_mac("02:00:00:00:00:55")
    driver.set_multicast([parse_mac("01:00:5e:00:00:01")])
    rig.igb.set_trust(0, True)
    driver.set_promiscuous(False, True)
    driver.set_vlan(6)
    driver.add_mac(other)
    free = list(rig.guest(0).dma._free)
    driver.stop()
    assert driver.state is State.STOPPED
    assert rig.guest(0).dma._free != free
    assert not VMOLR(rig.nic.port.registers.peek(Regs.VMOLR, 0)).ROMPE
    driver.start()
    assert rig.guest(0).dma._free == free
    assert VMOLR(rig.nic.port.registers.peek(Regs.VMOLR, 0)).ROMPE
    assert VMOLR(rig.nic.port.registers.peek(Regs.VMOLR, 0)).MPME
    assert (driver.vlans, driver.further_macs, driver.promiscuous) == ([6], [other], (False, True))
    send(rig.driver(1), frame(other, rig.driver(1).mac))
    rig.serve()
    assert len(take(driver)) == 1


def test_a_stopped_interface_is_not_started_by_recovery(rig):
    driver = rig.driver(0)
    driver.stop()
    rig.igb.reset()
    driver.recover()
    assert driver.state is State.PROBED
    assert not driver.netdev["up"]


def test_a_silent_pf_makes_an_interface_that_is_up_need_a_reset(rig):
    rig.igb._regs.set(Regs.EIMC, 1)
    start = rig.clock.now()
    with pytest.raises(MailboxError, match="does not answer") as caught:
        rig.driver(0).set_vlan(3)
    assert caught.value.errno_name == "ETIMEDOUT"
    assert rig.clock.now() - start == pytest.approx(S_PS, rel=0.01)
    assert rig.driver(0).state is State.RESET_NEEDED


def test_what_stop_finds_in_the_rings_is_counted(rig):
    a, b = rig.driver(0), rig.driver(1)
    send(a, *[frame(b.mac, a.mac)] * 5)
    rig.nic.serve()
    send(a, *[frame(b.mac, a.mac)] * 3)
    b.stop()
    a.stop()
    assert (a.given_up, b.given_up) == (3, 5)


def test_link_and_statistics_are_the_devices(rig):
    a, b = rig.driver(0), rig.driver(1)
    send(a, *[frame(b.mac, a.mac, length=100)] * 3, frame(BROADCAST, a.mac))
    rig.serve()
    stats = b.statistics()
    assert stats["VFGPRC"] == stats["VFGPRLBC"] == 4
    assert stats["VFGORC"] == 3 * 104 + 68
    assert a.statistics()["VFGPTC"] == 4
    assert "02:00:00:00:00:10" in repr(a)


# Recovery under traffic.


@pytest.mark.parametrize("kind", ["pairs", "fan-in", "broadcast"])
def test_a_reset_of_the_pf_under_traffic_loses_nothing_unexplained(kind):
    with Rig([("pf0", n) for n in range(3)]) as rig:
        engine = rig.engine(kind, 4000, length=60)
        for _ in range(3):
            rig.igb.reset()
            for _ in range(2):
                engine.step()
        assert engine.run()
        assert all(driver.state is State.RUNNING for driver in engine._drivers())
        assert rig.driver(0).resets >= 4
        check_all_accounted(rig, engine)
        assert sum(int(d.netdev["rx_frames"]) for d in engine._drivers()) > 0


def test_going_away_and_coming_back_under_traffic():
    with Rig() as rig:
        engine = rig.engine("pairs", 20000, length=60)
        engine.step()
        rig.igb.stop()
        for _ in range(5):
            engine.step()
            rig.clock.sleep(MS_PS)
        assert rig.driver(0).state is State.RESET_NEEDED
        rig.igb.reset()
        rig.clock.sleep(200 * MS_PS)
        assert engine.run()
        check_all_accounted(rig, engine)


def test_a_pf_that_never_comes_back_gets_the_run_stuck():
    with Rig() as rig:
        engine = rig.engine("pairs", 200_000, length=60)
        engine.step()
        rig.igb.stop()
        assert not engine.run()
        assert engine.workload.unfinished() == [0, 1]


# Without mapped pages.


def test_tails_go_through_the_bar_where_no_page_is_mapped():
    with Rig() as rig:
        guests = [rig.spare_guest(name) for name in "xy"]
        for n, guest in enumerate(guests, 2):
            rig.iovm.assign(rig.vf(n), guest, mapped=False)
            guest.nics[0].driver.start()
        x, y = (guest.nics[0].driver for guest in guests)
        assert x.rings.traps
        assert not rig.driver(0).rings.traps
        before = guests[0].meter["exit_bar"]
        send(x, *[frame(y.mac, x.mac)] * 10)
        assert guests[0].meter["exit_bar"] == before + 1
        rig.nic.serve()
        assert len(take(y)) == 10
        x.rings.show_tails()
        assert guests[0].meter["exit_bar"] == before + 1


def test_a_run_without_mapped_pages_delivers_every_frame_and_traps_for_bursts():
    with Rig() as rig:
        guests = [rig.spare_guest(name) for name in "xy"]
        for n, guest in enumerate(guests, 2):
            rig.iovm.assign(rig.vf(n), guest, mapped=n == 2)
            guest.nics[0].driver.start()
        before = [guest.exits for guest in guests]
        rows = [Station(g.nics[0].driver.row, g.nics[0].driver.mac) for g in guests]
        engine = Engine(rig.machine.host, rig.nic, guests, Workload("pairs", rows, frames=6400, length=60))
        assert engine.run()
        assert [f.missing + f.corrupt for f in engine.workload.findings()] == [0, 0]
        exits = [guest.exits - b for guest, b in zip(guests, before, strict=True)]
        assert exits[0] < 10  # unmasking only
        assert 100 <= exits[1] < 400  # a burst of 64 sent, and one of 64 taken


def test_recovery_keeps_what_the_pf_refuses_now_out(rig):
    driver = rig.driver(0)
    rig.igb.set_trust(0, True)
    driver.set_promiscuous(True, False)
    driver.set_vlan(9)
    rig.igb.set_trust(0, False)
    rig.igb.set_vlan(0, 77)
    driver.recover()
    assert driver.state is State.RUNNING
    assert driver.promiscuous == (False, False)
    assert driver.vlans == []
    assert np.all(driver.netdev["bounce"] == 0)
