"""Documents of the remapping unit of a lab's machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.rig import Rig
from virtfn.api.iommu import (
    ask_explanation,
    ask_show,
    save_iommu,
    show_document,
)
from virtfn.api.session import ExplainIommu
from virtfn.hw.types import Iova, Rid, format_rid
from virtfn.hw.vtd.regs import Granularity
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.iommu.explanation import Explanation, PageView
from virtfn.iovm.iommu.state import load_state, read_unit
from virtfn.machine.ports import VirtfnError


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(memory_mib=8) as made:
        yield made


def test_domains_of_a_machine_are_those_of_its_driver(rig: Rig) -> None:
    host = rig.machine.host
    document = show_document(read_unit(host), "here")
    assert json.loads(json.dumps(document)) == document
    for view, domain in zip(document["domains"], host.remapping.domains.values(), strict=True):
        assert view["id"] == domain.id
        assert view["rids"] == [format_rid(rid) for rid in sorted(domain.rids)]
        assert view["mappings"] == [r._asdict() for r in domain.ranges()]
    assert host.interrupt_table is not None
    assert [entry["index"] for entry in document["interrupts"]] == [i for i, *_ in host.interrupt_table.entries()]


def test_faults_are_counted_and_decoded(rig: Rig) -> None:
    host, rid = rig.machine.host, rig.vf(0).rid
    for _ in range(3):
        assert not host.dma_write(rid, Iova(1 << 40), b"x")
    assert host.dma_read(Rid(0x4200), Iova(0), 4) is None
    host.msi(rid, 0xFEE00000, 0x33)
    document = show_document(read_unit(host), "here")
    assert [(f["rid"], f["iova"], f["reason"], f["write"], f["count"]) for f in document["faults"]] == [
        (format_rid(rid), 1 << 40, "write not allowed", True, 3),
        ("0000:42:00.0", 0, "root not present", False, 1),
        (format_rid(rid), 0, "compatibility format blocked", False, 1),
    ]


def test_a_changed_table_is_stale_until_it_is_invalidated(rig: Rig) -> None:
    host, rid = rig.machine.host, rig.vf(0).rid

    def ask() -> Explanation:
        return ExplainIommu(rid, Iova(0x1000), write=True).explain(read_unit(host))

    def cached() -> PageView | None:
        caches = ask()["caches"]
        assert caches is not None
        return caches["iotlb"]

    assert host.dma_write(rid, Iova(0x1000), b"x")
    page = cached()
    assert page is not None
    assert (page["iova"], page["bytes"], page["stale"]) == (0, 2 << 20, False)
    at = ask()["steps"][-1]["address"] - host.memory.base
    kept = host.memory.bytes[at : at + 8].copy()
    host.memory.bytes[at : at + 8] = 0
    assert ask()["verdict"]["outcome"] == "fault"
    page = cached()
    assert page is not None
    assert page["stale"]
    assert host.dma_write(rid, Iova(0x1000), b"y"), "as it says"
    host.iommu.invalidator.translations(Granularity.GLOBAL, 0, 0, 0)
    assert cached() is None
    assert not host.dma_write(rid, Iova(0x1000), b"z")
    host.memory.bytes[at : at + 8] = kept


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"rid": "0000:01:10.0"}, "rid is a number of 16 bits"),
        ({"rid": 1 << 16}, "rid is a number of 16 bits"),
        ({"rid": True}, "rid is a number of 16 bits"),
        ({"iova": -1}, "iova is a number of 64 bits"),
        ({"iova": 1.5}, "iova is a number of 64 bits"),
        ({"message": 1 << 32}, "message is a number of 32 bits"),
        ({"write": 1}, "write is true or false"),
        ({"address": 1}, "no such parameter: address; there are rid, iova, write, message"),
    ],
)
def test_questions_that_make_no_sense_are_refused(params: dict[str, object], words: str) -> None:
    with pytest.raises(VirtfnError, match=words):
        ExplainIommu.from_params(params)


def test_a_saved_state_explains_what_the_machine_did(rig: Rig, tmp_path: Path) -> None:
    host, rid = rig.machine.host, rig.vf(1).rid
    save_iommu(host, tmp_path / "state.npz")
    for iova, write in ((0x1234, True), (8 << 20, False), (1 << 50, True)):
        request = ExplainIommu.from_params({"rid": int(rid), "iova": iova, "write": write})
        live = request.explain(read_unit(host))
        saved = ask_explanation(rid, Iova(iova), write, 0, None, tmp_path / "state.npz")
        assert saved == {**live, "caches": None}
    assert ask_show(None, tmp_path / "state.npz")["domains"] == show_document(read_unit(host), "")["domains"]
    assert len(load_state(tmp_path / "state.npz").counters) > 10
    with pytest.raises(VirtfnError, match="cannot be written"):
        save_iommu(host, tmp_path)


def test_every_fault_has_words() -> None:
    assert all(reason.text for reason in FaultReason)
