"""The bridge: where frames go, what it learns and forgets, that nobody keeps others waiting, the rings of a card."""

from __future__ import annotations

import numpy as np
import pytest

from unit.virtiorig import FrontEnd, ether, mac
from virtfn.devices.virtio import OFFERED, BackEnd, Bridge
from virtfn.drivers.virtio_net import VirtioNet
from virtfn.hw.eth import BROADCAST
from virtfn.hw.types import Mac
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels.breath import PATIENCE, breathe
from virtfn.machine.clock import S_PS, VirtualClock
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest
from virtfn.vmm.host import Host


def rig(count: int = 3, **options) -> tuple[Bridge, list[FrontEnd]]:
    bridge = Bridge(**options)
    ends = [FrontEnd(bridge) for _ in range(count)]
    for end in ends:
        end.fill(40, 128)
    return bridge, ends


def frames(end: FrontEnd) -> list[bytes]:
    return [frame for _, frame in end.received()]


def test_unknown_addresses_are_flooded_and_then_learnt() -> None:
    bridge, (a, b, c) = rig()
    first = ether(mac(1), mac(0), b"who are you")
    a.send(first)
    bridge.serve()
    assert frames(b) == frames(c) == [first]
    answer = ether(mac(0), mac(1), b"I am")
    b.send(answer)
    bridge.serve()
    assert frames(a) == [answer]
    assert frames(c) == []
    a.send(first)
    bridge.serve()
    assert (frames(b), frames(c)) == ([first], [])
    assert bridge.counters() == {"forwarded": 2, "flooded": 1, "unlearned": 0}
    assert bridge.addresses(b.port) == [mac(1)]


@pytest.mark.parametrize("target", [BROADCAST, 0x0000_0000_5E01, 0x33_33_01])
def test_groups_go_to_all_others(target: int) -> None:
    bridge, (a, b, c) = rig()
    frame = ether(Mac(target | 1), mac(0))
    a.send(frame)
    bridge.serve()
    assert (frames(a), frames(b), frames(c)) == ([], [frame], [frame])


def test_addresses_age_and_move() -> None:
    bridge, (a, b, c) = rig(ageing_ps=10)
    b.send(ether(mac(0), mac(1)))
    bridge.serve(now=100)
    for end in (a, c):
        end.received()
    for now, to_c in ((110, 0), (111, 1)):
        a.send(ether(mac(1), mac(0)))
        bridge.serve(now=now)
        assert (len(frames(b)), len(frames(c))) == (1, to_c)
    c.send(ether(mac(0), mac(1)))
    bridge.serve(now=112)
    a.send(ether(mac(1), mac(0)))
    bridge.serve(now=113)
    assert (len(frames(b)), len(frames(c))) == (0, 1)


def test_a_frame_for_where_it_came_from_goes_nowhere() -> None:
    bridge, (a, b, _) = rig()
    a.send(ether(mac(1), mac(0)))
    a.send(ether(mac(0), mac(7)))
    bridge.serve()
    assert len(frames(b)) == 1
    assert bridge.drops(a.port) == {"echo": 1}


def test_a_pinned_address_is_not_moved_and_a_port_that_is_checked_may_use_no_other() -> None:
    bridge, (a, b, c) = rig()
    bridge.pin(b.port, mac(1))
    bridge.pin(c.port, mac(2), check=True)
    c.send(ether(mac(0), mac(1)))
    a.send(ether(mac(0), mac(1)))
    bridge.serve()
    assert bridge.drops(c.port) == {"spoof": 1}
    assert bridge.addresses(b.port) == [mac(1)]
    assert bridge.addresses(a.port) == []


def test_made_up_addresses_take_no_place_of_others() -> None:
    bridge, (a, b, c) = rig()
    b.send(ether(mac(0), mac(1)))
    bridge.serve()
    for n in range(3000):
        a.send(ether(mac(1), Mac(0x02 | (n + 1000) << 16)))
        bridge.serve()
        b.received()
        b.fill(1, 128)
    assert len(bridge.addresses(a.port)) <= 64
    assert bridge.addresses(b.port) == [mac(1)]
    for end in (a, c):
        end.received()
    c.send(ether(mac(1), mac(2)))
    bridge.serve()
    assert (len(frames(b)), frames(a)) == (1, [])
    assert bridge.counters()["unlearned"] > 0


def test_a_full_receiver_keeps_nobody_waiting() -> None:
    bridge = Bridge()
    a, b, c = (FrontEnd(bridge) for _ in range(3))
    for end, n in ((b, 1), (c, 2)):
        bridge.pin(end.port, mac(n))
    c.fill(30, 128)
    for _ in range(10):
        a.send(ether(mac(1), mac(0)))
        a.send(ether(mac(2), mac(0)))
    bridge.serve()
    assert len(frames(c)) == 10
    assert bridge.drops(b.port) == {"no-buffer": 10}
    assert len(a.tx.reap()) == 20


def test_each_has_its_turn_and_a_budget() -> None:
    bridge, (a, b, c) = rig()
    bridge.pin(c.port, mac(2))
    for end, n in ((a, 0), (b, 1)):
        for i in range(30):
            end.send(ether(mac(2), mac(n), bytes([i])))
    bridge.serve(8)
    assert (bridge.port(a.port)["tx_frames"], bridge.port(b.port)["tx_frames"]) == (8, 8)


def test_a_port_that_goes_takes_its_addresses_along() -> None:
    bridge, (a, b, c) = rig()
    b.send(ether(mac(0), mac(1)))
    bridge.serve()
    c.received()
    bridge.remove(b.port)
    a.send(ether(mac(1), mac(0)))
    bridge.serve()
    assert len(frames(c)) == 1
    assert bridge.drops(b.port) == {}
    bridge.remove(c.port)
    a.send(ether(mac(1), mac(0)))
    bridge.serve()
    assert bridge.drops(a.port) == {"nobody": 1}


def test_ports_come_to_an_end() -> None:
    bridge = Bridge()
    ports = [bridge.add(BackEnd()) for _ in range(128)]
    with pytest.raises(VirtfnError, match="128 ports"):
        bridge.add(BackEnd())
    bridge.remove(ports[5])
    assert bridge.add(BackEnd()) == 5


# The driver, and the rings of a card's driver as a port.


class Embedded:
    """Guests with the front-end driver on one bridge."""

    def __init__(self, count: int = 2, **options) -> None:
        self.clock = VirtualClock()
        self.host = Host(self.clock, count * (8 << 20))
        self.bridge = Bridge()
        self.guests, self.backs, self.drivers = [], [], []
        for n in range(count):
            guest = Guest(self.host, f"g{n}", 8 << 20)
            back = BackEnd([(0, guest.memory.size, guest.memory.base)], mac=mac(n))
            driver = VirtioNet(back, guest.dma, self.clock, **options)
            driver.probe()
            driver.start()
            self.bridge.add(back, driver.interrupt)
            self.guests.append(guest)
            self.backs.append(back)
            self.drivers.append(driver)

    def run(self, kind: str = "pairs", frames: int = 2000, length: int = 300, **more) -> Workload:
        work = Workload(kind, [Station(d.row, d.mac) for d in self.drivers], frames=frames, length=length, **more)
        for _ in range(10_000):
            _, events = breathe(self.bridge.address, work.block.ctypes.data, self.clock.now(), 16, 64)
            self.bridge.handle(events)
            for d in self.drivers:
                if d.netdev["polling"] and d.netdev["empty_polls"] >= PATIENCE:
                    d.idle()
                if d.broken:
                    d.recover()
            busy = any(d.netdev["polling"] or d.tx_pending for d in self.drivers)
            if work.finished and not busy:
                return work
        raise AssertionError("the work got stuck")

    def close(self) -> None:
        for driver in self.drivers:
            driver.stop()
        for guest in self.guests:
            guest.close()
        self.host.close()


@pytest.mark.parametrize("features", [OFFERED, 1 << 32, 1 << 32 | 1 << 15, 1 << 32 | 1 << 29])
@pytest.mark.parametrize("length", [60, 1514])
def test_the_engine_runs_over_front_ends(features: int, length: int) -> None:
    e = Embedded(3, features=features)
    work = e.run(length=length)
    for finding in work.findings():
        assert (finding.missing, finding.corrupt, finding.reordered, finding.repeated) == (0, 0, 0, 0)
    costs = [back.costs() for back in e.backs]
    assert sum(cost["copies"] for cost in costs) >= 6000
    assert all(cost["notify_host"] > 0 for cost in costs[:2])
    assert sum(cost["notify_host"] for cost in costs) < 500
    assert all(back.counters()["tx_calls"] <= 1 for back in e.backs), "what was sent is reaped without"
    e.close()


def test_pings_are_answered_and_cost_a_notification_each_way() -> None:
    e = Embedded()
    work = e.run("ping", frames=50)
    assert int(work.row["tasks"][0]["answered"]) == 50
    assert all(back.costs()["notify_host"] >= 50 for back in e.backs)
    e.close()


def test_a_driver_recovers_after_its_ring_made_no_sense() -> None:
    e = Embedded()
    row = e.drivers[0].netdev
    view_bytes(int(row["tx_avail"]) + 2, 2).view(np.uint16)[0] = 999
    e.backs[0].channels["pending"][1] = 1
    e.bridge.serve()
    assert e.drivers[0].broken
    e.drivers[0].recover()
    assert not e.drivers[0].broken
    work = e.run()
    assert [finding.missing for finding in work.findings()] == [0, 0]
    e.close()


def test_a_card_may_be_a_port_and_its_rings_are_filled_and_emptied() -> None:
    """The rings here are those of a front end's driver on a second bridge: a NETDEV like any other."""
    e = Embedded(3)
    inner = Bridge()
    uplink, far = e.drivers[2], e.drivers[1]
    for n in (1, 2):
        e.bridge.remove(n)
        inner.add(e.backs[n], e.drivers[n].interrupt)
    port = e.bridge.add_netdev(uplink.row, uplink.idle)
    work = Workload("pairs", [Station(e.drivers[0].row, e.drivers[0].mac), Station(far.row, far.mac)], frames=1000)
    for _ in range(2000):
        for bridge in (e.bridge, inner):
            _, events = breathe(bridge.address, work.block.ctypes.data, 0, 1, 32)
            bridge.handle(events)
        for d in (e.drivers[0], far):
            if d.netdev["polling"] and d.netdev["empty_polls"] >= PATIENCE:
                d.idle()
        if work.finished and not any(d.netdev["polling"] or d.tx_pending for d in e.drivers):
            break
    assert [(f.missing, f.corrupt, f.reordered) for f in work.findings()] == [(0, 0, 0)] * 2
    assert e.bridge.port(port)["rx_frames"] >= 1000
    assert e.bridge.port(port)["copies"] >= 1000
    e.close()


@pytest.mark.parametrize(("ring", "mtu"), [(1, 1500), (100, 1500), (8192, 1500), (64, 67), (64, 65522)])
def test_rings_and_sizes_out_of_range_are_refused(ring: int, mtu: int) -> None:
    with pytest.raises(VirtfnError):
        VirtioNet(BackEnd(), None, ring=ring, mtu=mtu)


def test_time_is_what_ageing_goes_by() -> None:
    assert int(Bridge().row["own"]["ageing"]) == 300 * S_PS
