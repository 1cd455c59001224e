"""What `explain` says of a request must be what the kernels do with it: the page, the exact fault, or nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from property import test_irqremap as irq
from property import test_pagewalk as pagewalk
from reference.irqremap import Unit
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.interrupts import PostedControl
from virtfn.hw.vtd.regs import CAP, ECAP, IRTA
from virtfn.hw.vtd.tables import INTERRUPT_RANGE, INTERRUPT_RANGE_END
from virtfn.iovm.iommu.explanation import Verdict
from virtfn.iovm.iommu.state import HostPages, UnitState
from virtfn.iovm.iommu.tables import TableReader
from virtfn.iovm.iommu.walk import explain
from virtfn.kernels.vtd.dma import translate
from virtfn.kernels.vtd.iommu import FAULT_SLOTS, Iommu
from virtfn.kernels.vtd.irqremap import BLOCKED, DELIVERED, POSTED, invalidate_interrupts, remap_interrupt
from virtfn.machine.memory import HostMemory

LOW = (1 << 64) - 1


def state_of(memory: HostMemory, iommu: Iommu) -> UnitState:
    """Look at a unit without registers."""
    unit = iommu.unit[0]
    kinds = int(unit["kinds"])  # of translation, by T
    irta = IRTA.of(S=max(int(unit["irt_entries"]).bit_length() - 2, 0), EIME=int(unit["wide"]))
    return UnitState(
        memory=HostPages(memory),
        root=int(unit["root"]) & LOW,
        enabled=bool(unit["enabled"]),
        cap=CAP.of(SAGAW=int(unit["widths"]), SSLPS=int(unit["large"])),
        ecap=ECAP.of(DT=kinds >> 1 & 1, PT=kinds >> 2 & 1),
        irta=IRTA(irta.value | int(unit["irta"]) & IRTA.IRTA.mask),
        remapping=bool(unit["remapping"]),
        compatible=bool(unit["compatible"]),
        caches=(iommu,),
    )


@pytest.fixture(scope="module")
def tables() -> Iterator[pagewalk.Arena]:
    made = pagewalk.Arena()
    yield made
    made.memory.close()


@pytest.fixture(scope="module")
def messages() -> Iterator[irq.Arena]:
    made = irq.Arena()
    yield made
    made.memory.close()
    made.other.close()


def agree(arena: pagewalk.Arena, rid: int, iova: int, write: int) -> None:
    """Ask both; the kernel's caches may hold nothing of the request but what the tables say."""
    unit = arena.iommu.unit[0]
    said = explain(state_of(arena.memory, arena.iommu), Rid(rid), Iova(iova), bool(write))
    verdict = said["verdict"]
    unit["fault_head"] = unit["fault_tail"]
    before = int(unit["fault_tail"]), int(unit["suppressed"]), int(unit["aborted"])
    hpa, _ = translate(arena.iommu.row, rid, iova - (1 << 64) if iova >> 63 else iova, 1, write)
    recorded, suppressed, aborted = (
        int(unit[name]) - b for name, b in zip(("fault_tail", "suppressed", "aborted"), before, strict=True)
    )
    if verdict["outcome"] == "fault":
        assert (hpa, recorded, suppressed) == (0, verdict["recorded"], not verdict["recorded"])
        if recorded:
            fault = arena.iommu.faults[before[0] % FAULT_SLOTS]
            assert (int(fault["reason"]), int(fault["rid"])) == (verdict["code"], rid)
    elif verdict["outcome"] == "nothing":
        assert (hpa, recorded, suppressed, aborted) == (0, 0, 0, 1)
    else:
        assert (hpa, recorded, suppressed, aborted) == (verdict["hpa"], 0, 0, 0)
    # What is cached now comes from these tables, so nothing may be called stale.
    caches = explain(state_of(arena.memory, arena.iommu), Rid(rid), Iova(iova), bool(write))["caches"]
    assert caches is not None
    assert caches["context"] != "stale"
    assert caches["iotlb"] is None or not caches["iotlb"]["stale"]
    pagewalk.invalidate_contexts(arena.iommu.row, 0, 0, -1)
    pagewalk.invalidate_iotlb(arena.iommu.row, -1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_explanation_and_kernel_agree_on_any_tables(tables: pagewalk.Arena, data: st.DataObject) -> None:
    entries, requests = data.draw(pagewalk._hostile(tables.base))
    tables.iommu.unit[0]["root"] = tables.base
    tables.fill(entries)
    for rid, iova, _, write in requests:
        if not INTERRUPT_RANGE <= iova < INTERRUPT_RANGE_END:
            agree(tables, rid, iova, write)
    # Garbage may make the reader stop, and never makes it fail; what it lists, a request of that kind gets.
    reader = TableReader(state_of(tables.memory, tables.iommu), tables=64)
    for domain in reader.domains():
        for mapping in domain["mappings"][:4]:
            if mapping["iova"] < INTERRUPT_RANGE_END and mapping["iova"] + mapping["bytes"] > INTERRUPT_RANGE:
                continue
            rid = (
                int(domain["rids"][0][5:7], 16) << 8
                | int(domain["rids"][0][8:10], 16) << 3
                | int(domain["rids"][0][-1])
            )
            for right in ("read", "write"):
                said = explain(reader.state, Rid(rid), Iova(mapping["iova"]), right == "write")["verdict"]
                allowed = said["outcome"] in ("page", "nothing") or said.get("code") == 0xE
                assert allowed == mapping[right]  # type: ignore[literal-required]


@settings(max_examples=60, deadline=None)
@given(
    root=st.one_of(st.integers(-(1 << 51), (1 << 51) - 1).map(lambda n: n * 4096), st.just(0)),
    request=pagewalk._request,
)
def test_any_root_is_safe(tables: pagewalk.Arena, root: int, request: tuple[int, int, int, int]) -> None:
    tables.iommu.unit[0]["root"] = root
    tables.fill([])
    rid, iova, _, write = request
    if not INTERRUPT_RANGE <= iova < INTERRUPT_RANGE_END:
        agree(tables, rid, iova, write)
    assert TableReader(state_of(tables.memory, tables.iommu)).domains() == []


@settings(max_examples=60, deadline=None)
@given(request=pagewalk._request, where=st.integers(-64, 2 * pagewalk.CHUNK + 64))
def test_remapping_off(tables: pagewalk.Arena, request: tuple[int, int, int, int], where: int) -> None:
    tables.fill([])
    tables.iommu.unit[0]["enabled"] = 0
    try:
        for iova in (request[1], (tables.base + where) & LOW):
            if not INTERRUPT_RANGE <= iova < INTERRUPT_RANGE_END:
                agree(tables, request[0], iova, request[3])
    finally:
        tables.iommu.unit[0]["enabled"] = 1


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(irq.ENTRIES, min_size=8, max_size=8),
    controls=st.lists(irq.CONTROLS, min_size=2, max_size=2),
    unit=st.builds(
        Unit, st.sampled_from([0, 0, 0, 0, irq.CHUNK, None]), st.sampled_from([8, 4]), st.booleans(), st.booleans()
    ),
    requests=st.lists(
        st.tuples(irq.RIDS, irq.ADDRESSES, irq._bits(often=0, width=3) | irq._bits(often=1, width=32)),
        min_size=1,
        max_size=12,
    ),
)
def test_explanation_and_kernel_agree_on_any_message(
    messages: irq.Arena,
    entries: list[int],
    controls: list[PostedControl],
    unit: Unit,
    requests: list[tuple[int, int, int]],
) -> None:
    for i, bits in enumerate(entries):
        messages.entry(i, bits)
    for rid, address, message in requests:
        if address >> 20 != 0xFEE:
            continue
        for i, control in enumerate(controls):
            messages.put(irq.PIDS + 64 * i, 0, 32)
            messages.put(irq.PIDS + 64 * i + 32, control.value, 8)
        messages.set(unit)
        state = state_of(messages.memory, messages.iommu)
        verdict = explain(state, Rid(rid), Iova(address), True, message)["verdict"]
        suppressed = int(messages.unit["suppressed"])
        got = remap_interrupt(messages.row, rid, address, message)
        assert got == _expected(verdict)
        if verdict["outcome"] == "fault":
            assert int(messages.unit["suppressed"]) - suppressed == (not verdict["recorded"])
            if verdict["recorded"]:
                row = messages.iommu.faults[(int(messages.unit["fault_tail"]) - 1) % FAULT_SLOTS]
                assert int(row["reason"]) == verdict["code"]
        again = explain(state, Rid(rid), Iova(address), True, message)
        assert again["caches"] is not None
        assert again["caches"]["interrupt"] != "stale"
        invalidate_interrupts(messages.row, 0, 16)


def _expected(verdict: Verdict) -> tuple[int, int, int]:
    if verdict["outcome"] == "fault":
        return BLOCKED, 0, 0
    if verdict["outcome"] == "interrupt":
        return DELIVERED, verdict["vector"], verdict["destination"]
    if "notification" in verdict:
        return DELIVERED, verdict["notification"], verdict["destination"]
    return POSTED, 0, 0
