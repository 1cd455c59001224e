"""Guests by each I/O model: frames arrive as they were sent, costs are where the model has them, and nothing stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from virtfn.api.compare import _POSTED
from virtfn.api.comparerig import Plan, Rig, make_lab
from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.api.run import run_lab
from virtfn.drivers.igbnet import IgbNet
from virtfn.drivers.igbvf import Igbvf
from virtfn.drivers.virtio_net import VirtioNet
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.rxtx import SRRCTL
from virtfn.hw.types import Iova
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.model import MODELS, Wish
from virtfn.iomodels.workload import Workload
from virtfn.machine.clock import WallClock
from virtfn.machine.ports import VirtfnError

DRIVERS = {"split": VirtioNet, "direct": IgbNet, "passthrough": IgbNet, "sriov": Igbvf}


@contextmanager
def rig(name: str, guests: int = 1, **plan: int) -> Iterator[Rig]:
    wanted = Plan(frames=2000, memory_mib=8, loads=(), **plan)
    with Machine(make_lab(wanted, name, guests), WallClock(), ring=256) as machine:
        yield Rig(wanted, machine, WallClock())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [64, 1518])
def test_every_frame_arrives_unaltered_both_ways(name: str, size: int) -> None:
    with rig(name, frame_bytes=size) as r:
        outcome = r.work(2000)
        assert (outcome.delivered, outcome.lost, outcome.corrupt) == (4000, 0, 0)
        assert type(r.machine.guests[0].driver) is DRIVERS[name]


def test_one_driver_object_serves_under_direct_and_passthrough() -> None:
    assert DRIVERS["direct"] is DRIVERS["passthrough"] is not DRIVERS["split"]


@pytest.mark.parametrize("name", ["split", "direct", "sriov"])
def test_guests_share_the_nic(name: str) -> None:
    with rig(name, 3) as r:
        r.work(500)
        outcome = r.work(2000)
        assert (outcome.delivered, outcome.lost, outcome.corrupt) == (12000, 0, 0)


@pytest.mark.parametrize("name", MODELS)
def test_costs_are_where_the_model_has_them(name: str) -> None:
    with rig(name) as r:
        r.work(500)
        frame = r.work(2000).per_frame()
        sparse = r.work(60, fps=2000).per_frame()
    copies = {"split": 1.0, "direct": 2.0}.get(name, 0.0)
    assert frame["copies"] == pytest.approx(copies, abs=0.01)
    assert frame["bytes_copied"] == pytest.approx(1514 * copies, abs=15)
    assert frame["dma"] == pytest.approx(1.0, abs=0.01)
    assert (frame["notifications"] > 0) == (name == "split") == (sparse["guest_switches"] > frame["guest_switches"])
    if name == "direct":
        assert (
            sparse["exits"] > 2 * frame["exits"] > 0
        )  # each tail is one; a slow machine writes fewer for the same frames
    if name in _POSTED:
        assert frame["exits"] < 0.05
    if name == "split":
        assert frame["exits"] == sparse["exits"] == 0


def test_nothing_of_an_emulated_card_is_mapped_and_each_access_is_an_exit() -> None:
    with rig("direct") as r:
        guest = r.machine.guests[0].guest
        bar = guest.nics[0].function.bar(0)
        before = guest.exits
        assert bar.mapped(0xC018) is None
        bar.read(8)
        bar.write(0x5400, 1)
        assert guest.exits == before + 2


def test_rings_of_a_whole_card_are_mapped_where_they_hold_nothing_else() -> None:
    with rig("passthrough") as r:
        guest = r.machine.guests[0].guest
        bar = guest.nics[0].function.bar(0)
        assert [mapping.offset for mapping in guest.nics[0].function.mappings(0)] == [0xC000, 0xE000]
        assert bar.mapped(0xC018) is not None
        assert bar.mapped(0xE018) is not None
        assert bar.mapped(0x5400) is None


def test_an_address_outside_the_guest_leads_nowhere_in_direct() -> None:
    with rig("direct", 2) as r:
        run = r.machine.guests[0]
        driver = run.driver
        assert isinstance(driver, IgbNet)
        others = [other.guest.memory.bytes.copy() for other in r.machine.guests[1:]]
        driver.netdev["rx_iova"] = run.guest.memory.size + 0x1000  # beyond its own memory
        driver.netdev["tx_iova"] = 1 << 40
        r.stations[0].row[0]["tx_frames"] = 0
        outcome = r.work(300)
        assert outcome.lost > 0
        assert all(
            np.array_equal(before, other.guest.memory.bytes) or other.driver.netdev["rx_frames"] > 0
            for before, other in zip(others, r.machine.guests[1:], strict=True)
        )
        assert sum(run.link.drops().values()) > 0


def test_frames_that_a_card_had_no_room_for_arrive_once_it_has() -> None:
    with rig("direct") as r:
        run = r.machine.guests[0]
        bar, driver = run.guest.nics[0].function.bar(0), run.driver
        bar.write(Regs.SRRCTL.at(0), bar.read(Regs.SRRCTL.at(0)) & ~SRRCTL.DROP_EN.mask)
        bar.write(Regs.QDE.at(0), 0)  # who has no descriptor holds up the line
        workload = Workload("outside", r.stations, length=200, frames=400)
        engine = Engine(r.machine.host, r.pf.served, [run.guest], workload, hosts=r.pf.hosts)
        driver.netdev["up"] = 0
        for _ in range(40):
            engine.step()
        driver.netdev["up"] = driver.netdev["polling"] = 1
        assert engine.run()
        assert (sum(f.missing for f in workload.findings()), run.link.drops()) == (0, {})


def test_a_second_guest_of_a_whole_card_is_refused() -> None:
    with rig("passthrough") as r:
        model = r.pf.models["passthrough"]
        with pytest.raises(VirtfnError, match="the whole card is g0's; passthrough serves one guest") as caught:
            model.connect(r.machine.guests[0].guest, Wish(r.machine.guests[0].driver.mac))
        assert caught.value.errno_name == "EBUSY"


@pytest.mark.parametrize("name", MODELS)
def test_nothing_stays_behind(name: str) -> None:
    with rig(name) as r:
        r.work(200)
        machine = r.machine
        machine.stop()
        assert not machine.host.remapping.domains
        assert not any(run.guest.drivers for run in machine.guests)


def test_a_card_with_all_vfs_has_no_pool_for_the_host() -> None:
    with Machine(parse_lab(MIXED.replace("total-vfs: 2", "total-vfs: 7")), WallClock()) as machine:
        assert machine.pfs[0].stack is not None
    with pytest.raises(VirtfnError, match="no pool of pf0 is left for the host, as io split of guest c needs"):
        parse_lab(MIXED.replace("total-vfs: 2", "total-vfs: 8"))


MIXED = """\
name: mixed
pfs:
  - {name: pf0, sr-iov: {total-vfs: 2}}
guests:
  - {name: a, memory-mib: 8, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: c, memory-mib: 8, nic: {pf: pf0, io: split}}
  - {name: b, memory-mib: 8, nic: {pf: pf0, io: sriov, vf: 1}}
  - {name: d, memory-mib: 8, nic: {pf: pf0, io: direct}}
workload: {kind: ping, frames: 30}
"""


def test_guests_of_different_models_on_one_nic_talk_to_each_other() -> None:
    report = run_lab(parse_lab(MIXED))
    assert [(flow["sent"], flow["heard"]) for flow in report["flows"]] == [(30, 30), (30, 30)]
    assert {guest["name"]: guest["io"] for guest in report["guests"]} == {
        "a": "sriov", "b": "sriov", "c": "split", "d": "direct"
    }  # fmt: skip
    by_name = {guest["name"]: guest for guest in report["guests"]}
    assert by_name["d"]["exits"] > by_name["a"]["exits"] > by_name["c"]["exits"] == 0
    assert by_name["c"]["copies"] > 0
    assert by_name["a"]["copies"] == 0


def test_what_the_host_drops_explains_what_is_missing() -> None:
    report = run_lab(parse_lab(MIXED.replace("kind: ping, frames: 30", "kind: pairs, frames: 5000")))
    for flow in report["flows"]:
        assert sum(flow["reasons"].values()) == flow["sent"] - flow["heard"]
    assert sum(guest["lost"] + guest["corrupt"] for guest in report["guests"]) == 0


def test_the_hosts_rings_come_back_after_a_reset_of_the_port() -> None:
    with rig("split") as r:
        r.work(300)
        r.pf.driver.reset()  # type: ignore[attr-defined]
        assert r.pf.stack is not None
        assert r.pf.stack.driver.broken
        r.pf.stack.driver.recover()
        outcome = r.work(1000)
        assert (outcome.delivered, outcome.lost, outcome.corrupt) == (2000, 0, 0)


def test_dom0_reaches_its_own_memory_alone() -> None:
    with rig("split") as r:
        assert r.pf.stack is not None
        unit, rid = r.machine.host.iommu, r.pf.nic.pf_rid
        assert unit.dma_read(rid, Iova(0x1000), 16) is not None
        assert unit.dma_read(rid, Iova(r.pf.stack.guest.memory.size + 0x1000), 16) is None
