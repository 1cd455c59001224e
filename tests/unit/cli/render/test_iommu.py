"""What a remapping unit knows, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.cli.render.text import text
from unit.rig import Rig
from virtfn.api.iommu import show_document
from virtfn.api.session import ExplainIommu
from virtfn.cli.render.iommu import render_explanation, render_show
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.regs import Granularity
from virtfn.iovm.iommu.explanation import Explanation
from virtfn.iovm.iommu.state import read_unit


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(memory_mib=8) as made:
        yield made


def test_faults_say_who_what_and_why(rig: Rig) -> None:
    host, rid = rig.machine.host, rig.vf(0).rid
    for _ in range(3):
        assert not host.dma_write(rid, Iova(1 << 40), b"x")
    assert host.dma_read(Rid(0x4200), Iova(0), 4) is None
    host.msi(rid, 0xFEE00000, 0x33)
    shown = text(render_show(show_document(read_unit(host), "here")))
    for words in ("write not allowed (0x5)", "root not present (0x1)", "interrupt  entry 0"):
        assert words in shown


def test_an_explanation_tells_what_the_iotlb_holds(rig: Rig) -> None:
    host, rid = rig.machine.host, rig.vf(0).rid

    def ask() -> Explanation:
        return ExplainIommu(rid, Iova(0x1000), write=True).explain(read_unit(host))

    assert host.dma_write(rid, Iova(0x1000), b"x")
    explanation = ask()
    assert "the IOTLB holds the same (2 MiB at 0x0" in text(render_explanation(explanation))
    at = explanation["steps"][-1]["address"] - host.memory.base
    kept = host.memory.bytes[at : at + 8].copy()
    host.memory.bytes[at : at + 8] = 0
    shown = text(render_explanation(ask()))
    assert "fault  0x5, write not allowed; recorded" in shown
    assert "STALE" in shown
    host.iommu.invalidator.translations(Granularity.GLOBAL, 0, 0, 0)
    assert "the IOTLB holds nothing of it" in text(render_explanation(ask()))
    host.memory.bytes[at : at + 8] = kept


def test_text_says_what_is_wrong_and_what_is_left_out(rig: Rig) -> None:
    document = show_document(read_unit(rig.machine.host), "here")
    document["changing"] = document["truncated"] = document["domains"][0]["truncated"] = True
    document["domains"][0]["broken"] = 3
    document["broken"] = [{"entry": "root entry of bus 07", "value": "0x9", "reason": "root reserved", "code": 0xA}]
    document["unit"]["interrupts"] = False
    page = {"read": True, "write": False}
    document["domains"][0]["mappings"] = [{"iova": i << 13, "bytes": 4096, **page} for i in range(100)]  # type: ignore[typeddict-item]
    shown = text(render_show(document))
    for words in ("interrupt remapping off", "3 entries are broken", "root entry of bus 07", "and 36 more", "r-"):
        assert words in shown
    assert "Not everything is listed" in shown
    narrow = text(render_show(document), 60)
    assert max(len(line) for line in narrow.splitlines()) <= 60
    assert "…" not in narrow
