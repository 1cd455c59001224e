"""Documents of the remapping unit of a lab's machine, and how a person reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from unit.bed import Bed
from virtfn.api.iommu import (
    ask_explanation,
    ask_show,
    iommu_methods,
    save_iommu,
    show_document,
)
from virtfn.api.iommureport import render_explanation, render_show
from virtfn.hw.types import Iova, Rid, format_rid
from virtfn.hw.vtd.regs import Granularity
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.iommu.state import load_state, read_unit
from virtfn.machine.ports import VirtfnError


@pytest.fixture
def bed() -> Iterator[Bed]:
    with Bed(memory_mib=8) as made:
        yield made


def text(picture: RenderableType, width: int = 160) -> str:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return captured.get()


def test_domains_of_a_machine_are_those_of_its_driver(bed: Bed) -> None:
    host = bed.machine.host
    document = show_document(read_unit(host), "here")
    assert json.loads(json.dumps(document)) == document
    for view, domain in zip(document["domains"], host.remapping.domains.values(), strict=True):
        assert view["id"] == domain.id
        assert view["rids"] == [format_rid(rid) for rid in sorted(domain.rids)]
        assert view["mappings"] == [r._asdict() for r in domain.ranges()]
    assert host.interrupt_table is not None
    assert [entry["index"] for entry in document["interrupts"]] == [i for i, *_ in host.interrupt_table.entries()]


def test_faults_are_counted_and_decoded(bed: Bed) -> None:
    host, rid = bed.machine.host, bed.vf(0).rid
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
    shown = text(render_show(document))
    for words in ("write not allowed (0x5)", "root not present (0x1)", "interrupt  entry 0"):
        assert words in shown


def test_a_changed_table_shows_as_stale_until_it_is_invalidated(bed: Bed) -> None:
    host, rid = bed.machine.host, bed.vf(0).rid
    methods = iommu_methods(host, "bed")
    ask = lambda: methods["iommu.explain"]({"rid": int(rid), "iova": 0x1000, "write": True})  # noqa: E731
    assert host.dma_write(rid, Iova(0x1000), b"x")
    explanation = ask()
    assert "the IOTLB holds the same (2 MiB at 0x0" in text(render_explanation(explanation))  # type: ignore[arg-type]
    at = explanation["steps"][-1]["address"] - host.memory.base  # type: ignore[index]
    kept = host.memory.bytes[at : at + 8].copy()
    host.memory.bytes[at : at + 8] = 0
    shown = text(render_explanation(ask()))  # type: ignore[arg-type]
    assert "fault  0x5, write not allowed; recorded" in shown
    assert "STALE" in shown
    assert host.dma_write(rid, Iova(0x1000), b"y"), "as it says"
    host.iommu.invalidator.translations(Granularity.GLOBAL, 0, 0, 0)
    assert "the IOTLB holds nothing of it" in text(render_explanation(ask()))  # type: ignore[arg-type]
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
    ],
)
def test_questions_that_make_no_sense_are_refused(bed: Bed, params: dict[str, object], words: str) -> None:
    with pytest.raises(VirtfnError, match=words):
        iommu_methods(bed.machine.host, "bed")["iommu.explain"](params)


def test_a_saved_state_explains_what_the_machine_did(bed: Bed, tmp_path: Path) -> None:
    host, rid = bed.machine.host, bed.vf(1).rid
    save_iommu(host, tmp_path / "state.npz")
    for iova, write in ((0x1234, True), (8 << 20, False), (1 << 50, True)):
        live = iommu_methods(host, "bed")["iommu.explain"]({"rid": int(rid), "iova": iova, "write": write})
        saved = ask_explanation(rid, Iova(iova), write, 0, None, tmp_path / "state.npz")
        assert saved == {**live, "caches": None}  # type: ignore[dict-item]
    assert ask_show(None, tmp_path / "state.npz")["domains"] == show_document(read_unit(host), "")["domains"]
    assert len(load_state(tmp_path / "state.npz").counters) > 10
    with pytest.raises(VirtfnError, match="cannot be written"):
        save_iommu(host, tmp_path)


def test_text_says_what_is_wrong_and_what_is_left_out(bed: Bed) -> None:
    document = show_document(read_unit(bed.machine.host), "here")
    document["truncated"] = document["domains"][0]["truncated"] = True
    document["domains"][0]["broken"] = 3
    document["broken"] = [{"entry": "root entry of bus 07", "value": "0x9", "reason": "root reserved", "code": 0xA}]
    document["unit"]["interrupts"] = False
    page = {"read": True, "write": False}
    document["domains"][0]["mappings"] = [{"iova": i << 13, "bytes": 4096, **page} for i in range(100)]  # type: ignore[typeddict-item]
    shown = text(render_show(document))
    for words in ("interrupt remapping off", "3 entries are broken", "root entry of bus 07", "and 36 more", "r-"):
        assert words in shown
    assert "Not everything is listed" in shown
    assert max(len(line) for line in text(render_show(document), 60).splitlines()) <= 60


def test_every_fault_has_words() -> None:
    assert all(reason.text for reason in FaultReason)
