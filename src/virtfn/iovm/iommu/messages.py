"""Explain an interrupt message: its format, the table entry that it names, who may send it, what it raises.

Spec: VT-d, interrupt remapping; interrupt posting.
"""

from __future__ import annotations

from virtfn.hw.types import Rid, format_rid
from virtfn.hw.vtd.interrupts import (
    IRTE_BYTES,
    PID_BYTES,
    PID_CONTROL,
    CompatibilityAddress,
    PostedControl,
    PostedIrte,
    RemappableAddress,
    RemappedIrte,
    SourceValidation,
)
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.iommu.caches import cached_interrupt
from virtfn.iovm.iommu.explanation import CacheView, Explanation, Refused, Step, Verdict, fault_verdict, step
from virtfn.iovm.iommu.state import UnitState

__all__ = ["descriptor_of", "destination_of", "explain_message", "is_reserved", "requester_words"]

_IGNORED = (0, 0b100, 0b110, 0b111)
_ALL = (1 << 128) - 1


def is_reserved(bits: int) -> bool:
    """Tell whether reserved bits of an interrupt remapping table entry are set, or a reserved value is."""
    kind = PostedIrte if RemappedIrte(bits).IM else RemappedIrte
    return bool(bits & ~kind.NAMED & _ALL) or RemappedIrte(bits).SVT not in set(SourceValidation)


def requester_words(bits: int) -> str:
    """Say who may use an entry."""
    entry = RemappedIrte(bits)
    if entry.SVT == SourceValidation.REQUESTER:
        ignored = _IGNORED[entry.SQ]
        name = format_rid(Rid(entry.SID & ~ignored))
        return f"{name} to {format_rid(Rid(entry.SID | ignored))}, bits {ignored:03b} ignored" if ignored else name
    if entry.SVT == SourceValidation.BUS_RANGE:
        return f"buses {entry.SID >> 8:02x} to {entry.SID & 0xFF:02x}"
    return "anyone" if entry.SVT == SourceValidation.NONE else "reserved"


def descriptor_of(bits: int) -> int:
    """Return the address of the descriptor that a posted entry names."""
    entry = PostedIrte(bits)
    return entry.PDA_HIGH << 32 | entry.PDA_LOW << 6


def destination_of(state: UnitState, destination: int) -> int:
    """Return the local APIC that a 32-bit destination field names."""
    return destination if state.irta.EIME else destination >> 8 & 0xFF


def explain_message(state: UnitState, rid: Rid, address: int, message: int) -> Explanation:
    """Explain what becomes of `message`, written to `address` in the interrupt range by a requester."""
    steps: list[Step] = []
    index = None
    try:
        index = _index(state, address, message, steps)
        verdict = _direct(address, message) if index is None else _entry(state, rid, index, steps)
    except Refused as refused:
        verdict = fault_verdict(refused)
    return {
        "rid": format_rid(rid),
        "iova": address,
        "write": True,
        "steps": steps,
        "verdict": verdict,
        "caches": _caches(state, index),
    }


def _index(state: UnitState, address: int, message: int, steps: list[Step]) -> int | None:
    """Decode the message; return the index of its table entry, or None if it needs none."""
    where = RemappableAddress(address)
    if not state.remapping or not where.FORMAT:
        compatible = CompatibilityAddress(address)
        why = "compatibility format" if state.remapping else "interrupt remapping is off"
        blocked = state.remapping and (not state.compatible or bool(state.irta.EIME))
        words = f"{why}; {'blocked' if blocked else 'passes as it is'}"
        steps.append(step(f"message {message:#x}", address, compatible, 32, words))
        if blocked:
            raise Refused(FaultReason.COMPATIBILITY_FORMAT_BLOCKED)
        return None
    handle = where.HANDLE | where.HANDLE_HIGH << 15
    words = f"handle {handle}"
    index = handle
    if where.SHV:
        index += message & 0xFFFF
        words += f" and subhandle {message & 0xFFFF}: entry {index}"
    steps.append(step(f"message {message:#x}", address, where, 32, words))
    if where.SHV and message >> 16:
        raise Refused(FaultReason.INTERRUPT_REQUEST_RESERVED)
    if index >= state.interrupt_entries:
        raise Refused(FaultReason.INTERRUPT_INDEX_BEYOND_TABLE)
    return index


def _direct(address: int, message: int) -> Verdict:
    destination = CompatibilityAddress(address).DESTINATION
    return _raised(message & 0xFF, destination)


def _raised(vector: int, destination: int) -> Verdict:
    words = f"vector {vector:#x} is raised at local APIC {destination:#x}"
    return {"outcome": "interrupt", "words": words, "vector": vector, "destination": destination}


def _entry(state: UnitState, rid: Rid, index: int, steps: list[Step]) -> Verdict:
    at = state.interrupt_table + index * IRTE_BYTES
    bits = state.pair(at)
    name = f"interrupt entry {index}"
    if bits is None:
        steps.append(step(name, at, None, 128, "cannot be read"))
        raise Refused(FaultReason.INTERRUPT_ENTRY_ACCESS)
    entry = RemappedIrte(bits)
    posted = PostedIrte(bits)
    fpd = bool(entry.FPD)
    steps.append(step(name, at, posted if entry.IM else entry, 128, f"may be used by {requester_words(bits)}"))
    if not entry.P:
        raise Refused(FaultReason.INTERRUPT_ENTRY_NOT_PRESENT, fpd)
    if is_reserved(bits):
        raise Refused(FaultReason.INTERRUPT_ENTRY_RESERVED, fpd)
    if not _source_allowed(entry, rid):
        raise Refused(FaultReason.INTERRUPT_SOURCE, fpd)
    if not entry.IM:
        return _raised(entry.V, destination_of(state, entry.DST))
    descriptor = descriptor_of(bits)
    if not state.memory.contains(descriptor, PID_BYTES):
        raise Refused(FaultReason.INTERRUPT_DESCRIPTOR_ACCESS, fpd)
    return _posted(state, posted, descriptor, steps)


def _source_allowed(entry: RemappedIrte, rid: Rid) -> bool:
    if entry.SVT == SourceValidation.REQUESTER:
        return not (entry.SID ^ rid) & ~_IGNORED[entry.SQ]
    if entry.SVT == SourceValidation.BUS_RANGE:
        return entry.SID >> 8 <= rid >> 8 <= entry.SID & 0xFF
    return True


def _posted(state: UnitState, entry: PostedIrte, descriptor: int, steps: list[Step]) -> Verdict:
    at = descriptor + PID_CONTROL
    word = state.word(at)
    words = f"vector {entry.VV:#x} is noted in the descriptor at {descriptor:#x}"
    verdict: Verdict = {"outcome": "posted", "words": words, "vector": entry.VV, "descriptor": descriptor}
    if word is None:
        return verdict
    control = PostedControl(word)
    quiet = "a notification is under way" if control.ON else ""
    if control.SN and not (control.ON or entry.URG):
        quiet = "SN suppresses notifications"
    destination = destination_of(state, control.NDST)
    notice = f"notification vector {control.NV:#x} is raised at local APIC {destination:#x}"
    steps.append(step("posted interrupt descriptor", at, control, 64, quiet or notice))
    verdict["words"] += f"; {quiet or notice}"
    if not quiet:
        verdict["notification"], verdict["destination"] = control.NV, destination
    return verdict


def _caches(state: UnitState, index: int | None) -> CacheView | None:
    if not state.caches:
        return None
    known = [] if index is None else [cached_interrupt(iommu, index) for iommu in state.caches]
    held = next((bits for bits in known if bits is not None), None)
    if index is None or held is None:
        return {"interrupt": "none"}
    bits = state.pair(state.interrupt_table + index * IRTE_BYTES)
    return {"interrupt": "equal" if held == bits else "stale"}
