"""Probes of registers, messages and configuration space."""

from __future__ import annotations

from probes import listed, probe
from probes.bench import Bench
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import EEMNGCTL, EERD, EEWR, ICR, IVAR_MISC, P2VMAILBOX, TCPTIMER, V2PMAILBOX, VTCTRL
from virtfn.hw.pci import Address, Dsn, SrIov, SrIovControl
from virtfn.iovm.walk import SrIovView, capability_of

VALID = 0x80


@probe(3, "VTIVAR_MISC names vector 0, 1, 2; the PF writes STS", "messages of vector 0, 1, 2")
def mailbox_vector(bench: Bench) -> str:
    seen = []
    bench.set(VfRegs.VTEIAC, 7, vf=1)
    bench.set(VfRegs.VTEIMS, 7, vf=1)
    for vector in range(3):
        bench.set(VfRegs.VTIVAR_MISC, VALID | vector, vf=1)
        bench.set(Regs.P2VMAILBOX, P2VMAILBOX.of(STS=1).value, 1)
        seen.append(listed(v for n, v in bench.messages() if n == 1))
    return f"messages of vector {', '.join(seen)}"


@probe(4, "a VF sets causes 5 by VTEICS; its mask 6, and clears 2 of it", "VTEICR 5, VTEIMS 4")
def causes_and_mask(bench: Bench) -> str:
    bench.set(VfRegs.VTEICS, 5, vf=3)
    causes = bench.get(VfRegs.VTEICR, vf=3)
    bench.set(VfRegs.VTEIMS, 6, vf=3)
    bench.set(VfRegs.VTEIMC, 2, vf=3)
    return f"VTEICR {causes}, VTEIMS {bench.get(VfRegs.VTEIMS, vf=3)}"


@probe(8, "VFs 0 and 1 write REQ; MBVFIMR leaves VF 1 out", "VF 0 interrupts, VF 1 does not")
def mailbox_mask(bench: Bench) -> str:
    bench.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=0, OTHER_VALID=1).value)
    bench.set(Regs.EIAC, 1)
    bench.set(Regs.EIMS, 1)
    bench.set(Regs.IMS, ICR.VMMB.mask)
    bench.set(Regs.MBVFIMR, 0xFD)
    seen = []
    for n in (0, 1):
        bench.get(Regs.ICR)
        bench.messages()
        bench.set(VfRegs.V2PMAILBOX, V2PMAILBOX.of(REQ=1).value, vf=n)
        seen.append(f"VF {n} {'interrupts' if (None, 0) in bench.messages() else 'does not'}")
    return ", ".join(seen)


@probe(8, "a VF holds the buffer; the PF writes RVFU", "VFU for the PF 1, then 0, for the VF 0")
def forced_release(bench: Bench) -> str:
    bench.set(VfRegs.V2PMAILBOX, V2PMAILBOX.of(VFU=1).value, vf=1)
    held = P2VMAILBOX(bench.get(Regs.P2VMAILBOX, 1)).VFU
    bench.set(Regs.P2VMAILBOX, P2VMAILBOX.of(RVFU=1).value, 1)
    pf = P2VMAILBOX(bench.get(Regs.P2VMAILBOX, 1)).VFU
    return f"VFU for the PF {held}, then {pf}, for the VF {V2PMAILBOX(bench.get(VfRegs.V2PMAILBOX, vf=1)).VFU}"


@probe(9, "EIAC and EIAM are written 3, then 4; cause 2 comes, EIMS 7", "EIAC 4, EIAM 4; EIMS 3, EICR 0")
def automatic_clear_and_mask(bench: Bench) -> str:
    seen = []
    for decl in (Regs.EIAC, Regs.EIAM):
        bench.set(decl, 3)
        bench.set(decl, 4)
        seen.append(bench.get(decl))
    bench.set(Regs.EIMS, 7)
    bench.set(Regs.EICS, 4)
    bench.messages()
    return f"EIAC {seen[0]:x}, EIAM {seen[1]:x}; EIMS {bench.get(Regs.EIMS):x}, EICR {bench.get(Regs.EICR):x}"


@probe(13, "the TCP timer is started, 5 ms", "a message of vector 2 after 10 ms")
def tcp_timer(bench: Bench) -> str:
    bench.set(Regs.IVAR_MISC, IVAR_MISC.of(TCP_TIMER=2, TCP_TIMER_VALID=1).value)
    bench.set(Regs.EIMS, 1 << 2)
    bench.set(Regs.TCPTIMER, TCPTIMER.of(DURATION=5, KICKSTART=1, ENABLE=1).value)
    came = [vector for n, vector in bench.messages(us=10_000) if n is None]
    return f"{f'a message of vector {listed(came)}' if came else 'no message'} after 10 ms"


@probe(
    15,
    "a VF with EIMS 7 and the mailbox's buffer writes VTCTRL.RST, then VTEICS",
    "no message, VFU 0; TDBAL kept",
)
def vf_reset(bench: Bench) -> str:
    before = bench.get(VfRegs.TDBAL, vf=1)
    bench.set(VfRegs.VTEIMS, 7, vf=1)
    bench.set(VfRegs.V2PMAILBOX, V2PMAILBOX.of(VFU=1).value, vf=1)
    bench.set(VfRegs.VTCTRL, VTCTRL.of(RST=1).value, vf=1)
    bench.messages()
    bench.set(VfRegs.VTEICS, 1, vf=1)
    message = "a message" if any(n == 1 for n, _ in bench.messages()) else "no message"
    held = P2VMAILBOX(bench.get(Regs.P2VMAILBOX, 1)).VFU
    kept = "kept" if bench.get(VfRegs.TDBAL, vf=1) == before else "lost"
    return f"{message}, VFU {held}; TDBAL {kept}"


@probe(16, "EEMNGCTL is read; EEWR writes beef to word 30h, EERD reads it", "CFG_DONE 1 1; EEWR.DONE 1, EERD beef")
def eeprom(bench: Bench) -> str:
    done = EEMNGCTL(bench.get(Regs.EEMNGCTL))
    bench.set(Regs.EEWR, EEWR.of(START=1, ADDR=0x30, DATA=0xBEEF).value)
    written = EEWR(bench.get(Regs.EEWR)).DONE
    bench.set(Regs.EERD, EERD.of(START=1, ADDR=0x30).value)
    read = EERD(bench.get(Regs.EERD)).DATA
    return f"CFG_DONE {done.CFG_DONE0} {done.CFG_DONE1}; EEWR.DONE {written}, EERD {read:x}"


@probe(
    17,
    "SR-IOV and serial number in configuration space; ARI Capable Hierarchy set",
    "First VF Offset 180, with ARI 80; VF BARs prefetchable 0 0; a serial number",
)
def configuration_space(bench: Bench) -> str:
    rid = bench.pf.rid
    bench.pcim.disable_vfs(rid)
    regs = SrIovView(bench.board, rid).regs
    plain = regs.get(SrIov.FIRST_VF_OFFSET)
    regs.set(SrIov.CONTROL, SrIovControl.of(ARI=1).value)
    bars = [Address(regs.get(SrIov.VF_BAR, i)).PREFETCHABLE for i in (0, 3)]
    serial = "no" if capability_of(bench.board, rid, Dsn) is None else "a"
    return (
        f"First VF Offset {plain:x}, with ARI {regs.get(SrIov.FIRST_VF_OFFSET):x}; "
        f"VF BARs prefetchable {listed(bars)}; {serial} serial number"
    )


@probe(18, "TXCTL of queues 0 to 3 is written, and read at its old place", "the same, the same, the same, the same")
def old_place(bench: Bench) -> str:
    for queue in range(4):
        bench.set(Regs.TXCTL, 0x2A00 | (queue + 1) << 24, queue)
    pairs = [(bench.peek(0x3814 + 0x100 * queue), bench.get(Regs.TXCTL, queue)) for queue in range(4)]
    return ", ".join("the same" if old == new else f"{old:x} for {new:x}" for old, new in pairs)


@probe(18, "a cause is masked in by IMS at 1508; IMS is read there, and at its old place", "4 and 4")
def new_place(bench: Bench) -> str:
    bench.poke(Regs.IMS.at(), ICR.LSC.mask)
    return " and ".join(str(bench.peek(at)) for at in (Regs.IMS.at(), 0xD0))
