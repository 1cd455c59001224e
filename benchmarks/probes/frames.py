"""Probes by frames: what is sent, and who receives it."""

from __future__ import annotations

from probes import listed, probe
from probes.bench import LEGACY, ONE_BUFFER, POOL, RX, TX, VFS, Bench, mac, to_send
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.desc import (
    RXD_LB,
    RXD_VP,
    TXC_MACLEN_SHIFT,
    TXD_DEXT,
    TXD_DTYP_CONTEXT,
    TXD_EOP,
    TXD_IFCS,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
    TXD_TXSM,
    TXD_VLE,
    TXL_VLAN_SHIFT,
)
from virtfn.hw.i82576.fields import ICR
from virtfn.hw.i82576.rxtx import DTXCTL, DTXSWC, MRQC, RCTL, RPLOLR, RTTBCNRC, VMOLR, VMRCTL, VT_CTL

BROADCAST, STRANGER, GROUP = b"\xff" * 6, b"\x02\0\0\0\x12\x34", b"\x01\0\x5e\0\x12\x34"
VALID = 0x80


def frame(target: bytes, source: bytes = b"\x02\0\0\0\0\x99", size: int = 60) -> bytes:
    """Make a frame of `size` bytes without frame check sequence."""
    return (target + source + b"\x88\xb5").ljust(size, b"\x5a")


def tagged(body: bytes, tci: int) -> bytes:
    """Put a VLAN tag into a frame."""
    return body[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + body[12:]


def ones_sum(content: bytes, before: int = 0) -> int:
    """Add 16-bit words with end-around carry."""
    total = before + sum(int.from_bytes(content[i : i + 2], "big") for i in range(0, len(content), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(target: bytes, last: int) -> bytes:
    """Make an IPv4 frame without payload, from 10.0.0.`last`."""
    header = bytes.fromhex("450000140000000040000000") + bytes([10, 0, 0, last, 10, 0, 0, 200])
    checksum = (~ones_sum(header) & 0xFFFF).to_bytes(2, "big")
    return (target + mac(0) + b"\x08\0" + header[:10] + checksum + header[12:]).ljust(60, b"\0")


@probe(
    1,
    "VF 0 sends with another's address, and in another's VLAN, to VF 1; MACAS, VLANAS set",
    "received 0 of 2; SSVPC 2, WVBR 1, ICR.DOUTSYNC 1",
)
def spoofing(bench: Bench) -> str:
    bench.set(Regs.DTXSWC, DTXSWC.of(LOOPBACK_EN=1, MACAS=1, VLANAS=1).value)
    bench.set(Regs.DTXCTL, DTXCTL.of(SPOOF_INT=1).value)
    bench.vlan(0, 9, 0b0010)
    bench.send(0, frame(mac(1), mac(3)), tagged(frame(mac(1), mac(0)), 9))
    told = ICR(bench.get(Regs.ICR)).DOUTSYNC
    return (
        f"received {len(bench.got(1))} of 2; "
        f"SSVPC {bench.get(Regs.SSVPC)}, WVBR {bench.get(Regs.WVBR):x}, ICR.DOUTSYNC {told}"
    )


@probe(
    1,
    "VF 2 sends a frame whose PAYLEN is wrong, then a right one; DTXCTL.MDP_EN set",
    "received none; WVBR 40004, LVMMC blames queue 2",
)
def malicious_driver(bench: Bench) -> str:
    bench.set(Regs.DTXCTL, DTXCTL.of(MDP_EN=1).value)
    address, word = to_send(bench.put(2, frame(mac(1), mac(2))), 60)
    bench.post(2, (address, word + (1 << TXD_PAYLEN_SHIFT)))
    wvbr, lvmmc = bench.get(Regs.WVBR), bench.get(Regs.LVMMC)
    bench.post(2, (address, word))
    blamed = f"blames queue {lvmmc >> 16 & 0xF}" if lvmmc else "is 0"
    return f"received {len(bench.got(1)) or 'none'}; WVBR {wvbr:x}, LVMMC {blamed}"


@probe(2, "VF 1 sends a broadcast; again with its LLE bit", "received by VFs 0 2 3; with LLE by 0 1 2 3")
def own_broadcast(bench: Bench) -> str:
    bench.send(1, frame(BROADCAST, mac(1)))
    first = bench.takers()
    bench.set(Regs.DTXSWC, DTXSWC.of(LOOPBACK_EN=1, LLE=0b0010).value)
    bench.send(1, frame(BROADCAST, mac(1)))
    return f"received by VFs {listed(first)}; with LLE by {listed(bench.takers())}"


@probe(5, "8 flows to a pool with RSSE, mode 5; a vector for each queue", "queues 0 1, vectors 1 2")
def pool_with_rss(bench: Bench) -> str:
    bench.set(Regs.MRQC, MRQC.of(MODE=5, RSS_IPV4=1).value)
    for i in range(32):
        bench.set(Regs.RETA, 0x01000100, i)
    for i in range(10):
        bench.set(Regs.RSSRK, 0x9E3779B9 * (i + 1) & 0xFFFFFFFF, i)
    bench.set(Regs.VMOLR, POOL.replace(RSSE=1).value, 1)
    bench.set(VfRegs.VTIVAR, (VALID | 1) << 16 | VALID | 2, vf=1)
    bench.set(VfRegs.VTEIMS, 7, vf=1)
    bench.board.arrive(*[ipv4(mac(1), last) for last in range(8)])
    vectors = listed(v for n, v in bench.messages() if n == 1)
    return f"queues {listed(queue for queue in (0, 1) if bench.got(1, queue))}, vectors {vectors}"


@probe(
    6,
    "unknown unicast and multicast come, UTA and MTA full; then MPME with MTA empty",
    "ROPE takes unicast, ROMPE multicast, MPME multicast, nothing none; MPME alone multicast",
)
def hashes(bench: Bench) -> str:
    def taken(bits: VMOLR) -> str:
        bench.set(Regs.VMOLR, bits.value, 1)
        seen = []
        for kind, target in (("unicast", STRANGER), ("multicast", GROUP)):
            bench.board.arrive(frame(target))
            seen += [kind] * len(bench.got(1))
        return listed(seen)

    def fill(word: int) -> None:
        for i in range(128):
            bench.set(Regs.UTA, word, i)
            bench.set(Regs.MTA, word, i)

    fill(0xFFFFFFFF)
    rope, rompe, mpme = (taken(POOL.replace(**{name: 1})) for name in ("ROPE", "ROMPE", "MPME"))
    nothing = taken(POOL)
    fill(0)
    return f"ROPE takes {rope}, ROMPE {rompe}, MPME {mpme}, nothing {nothing}; MPME alone {taken(POOL.replace(MPME=1))}"


@probe(7, "a broadcast comes; RPL_EN clear", "received by VFs 0")
def no_replication(bench: Bench) -> str:
    bench.set(Regs.VT_CTL, VT_CTL.of(DIS_DEF_POOL=1).value)
    bench.board.arrive(frame(BROADCAST))
    return f"received by VFs {listed(bench.takers())}"


@probe(
    7,
    "unknown unicast comes; default pool 2, then disabled",
    "received by VFs 2; disabled by none",
)
def default_pool(bench: Bench) -> str:
    bench.set(Regs.VT_CTL, VT_CTL.of(RPL_EN=1, DEF_PL=2).value)
    bench.board.arrive(frame(STRANGER))
    enabled = bench.takers()
    bench.set(Regs.VT_CTL, VT_CTL.of(RPL_EN=1, DEF_PL=2, DIS_DEF_POOL=1).value)
    bench.board.arrive(frame(STRANGER))
    return f"received by VFs {listed(enabled)}; disabled by {listed(bench.takers())}"


@probe(7, "unknown unicast comes in the VLAN of VFs 1 and 3; IGN_MAC set", "received by VFs 1 3")
def vlan_alone(bench: Bench) -> str:
    bench.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1, VFE=1, SECRC=1).value)
    bench.set(Regs.VT_CTL, VT_CTL.of(RPL_EN=1, DIS_DEF_POOL=1, IGN_MAC=1).value)
    bench.vlan(0, 7, 0b1010)
    bench.board.arrive(tagged(frame(STRANGER), 7))
    return f"received by VFs {listed(bench.takers())}"


@probe(7, "VF 0 broadcasts in a VLAN with LVLAN, then in one without", "0 and 1 left by the wire")
def local_vlan(bench: Bench) -> str:
    bench.vlan(0, 7, 0b1011)
    bench.vlan(1, 8, 0b0111, local=True)
    bench.board.left()
    left = []
    for vid in (8, 7):
        bench.send(0, tagged(frame(BROADCAST, mac(0)), vid))
        left.append(len(bench.board.left()))
    return f"{left[0]} and {left[1]} left by the wire"


@probe(10, "VF 2's VTIVAR names vector 1, then 2, then 0; a frame after each", "VF 2's 1, VF 2's 2, VF 2's 0")
def vector_again(bench: Bench) -> str:
    seen = []
    for n in range(VFS):  # another's vector would be seen
        bench.set(VfRegs.VTEIAC, 7, vf=n)
        bench.set(VfRegs.VTEIMS, 7, vf=n)
    for vector in (1, 2, 0):
        bench.set(VfRegs.VTIVAR, VALID | vector, vf=2)
        bench.board.arrive(frame(mac(2)))
        seen.append(listed(f"VF {n}'s {v}" for n, v in bench.messages(us=1000)))
    return ", ".join(seen)


@probe(
    11,
    "16 frames to a ring of 15, one to another VF, QDE clear; then QDE set, and one more",
    "RQDPC 0, the other's waits; then RQDPC 2, the other's is there",
    ONE_BUFFER,
)
def queue_without_descriptors(bench: Bench) -> str:
    bench.set(Regs.QDE, 0)
    bench.send(0, *[frame(mac(1), mac(0))] * 16)
    bench.send(2, frame(mac(3), mac(2)))
    first, before = bench.get(VfRegs.RQDPC, vf=1), len(bench.got(3))
    bench.set(Regs.QDE, 1 << 1)
    bench.send(0, frame(mac(1), mac(0)))
    second, after = bench.get(VfRegs.RQDPC, vf=1), before + len(bench.got(3))
    return (
        f"RQDPC {first}, the other's {'is there' if before else 'waits'}; "
        f"then RQDPC {second}, the other's {'is there' if after else 'waits'}"
    )


@probe(11, "16 frames to a ring of 15 with DROP_EN, QDE clear", "RQDPC 1, then 0")
def queue_that_drops(bench: Bench) -> str:
    bench.set(Regs.QDE, 0)
    bench.send(0, *[frame(mac(1), mac(0))] * 16)
    return f"RQDPC {bench.get(VfRegs.RQDPC, vf=1)}, then {bench.get(VfRegs.RQDPC, vf=1)}"


@probe(
    12,
    "VF 0 sends to VF 1; a frame comes from the wire",
    "LB 1 and 0; VFGPTLBC 1, VFGOTLBC 64, VFGPRLBC 1, VFGORLBC 64",
)
def loopback(bench: Bench) -> str:
    bench.send(0, frame(mac(1), mac(0)))
    bench.board.arrive(frame(mac(1)))
    marks = " and ".join(str(int(bool(got.word & RXD_LB))) for got in bench.got(1))
    counts = (
        f"{decl.name} {bench.get(decl, vf=n)}"
        for n, decl in ((0, VfRegs.VFGPTLBC), (0, VfRegs.VFGOTLBC), (1, VfRegs.VFGPRLBC), (1, VfRegs.VFGORLBC))
    )
    return f"LB {marks}; {', '.join(counts)}"


@probe(
    12,
    "tagged frames come: to VF 1 and to all, VMOLR strips; to all, RPLOLR strips too",
    "stripped 1, 0, 1",
)
def strip_replicated(bench: Bench) -> str:
    bench.set(Regs.VMOLR, POOL.replace(STRVLAN=1).value, 1)
    bench.board.arrive(tagged(frame(mac(1)), 5))
    bench.board.arrive(tagged(frame(BROADCAST), 5))
    bench.set(Regs.RPLOLR, RPLOLR.of(RSV31=1, STRVLAN=1).value)
    bench.board.arrive(tagged(frame(BROADCAST), 5))
    return f"stripped {', '.join(str(int(bool(got.word & RXD_VP))) for got in bench.got(1)) or 'none came'}"


@probe(13, "VF 0, limited to 10 Mb/s, sends 12 frames of 1500 bytes; 1 ms, then a second", "at most 3, then all")
def rate_limit(bench: Bench) -> str:
    bench.set(Regs.RTTDQSEL, 0)
    bench.set(Regs.RTTBCNRC, RTTBCNRC.of(RS_ENA=1, RF_INT=100).value)
    body = frame(mac(1), mac(0), 1496)
    bench.post(0, *[to_send(bench.put(0, body), len(body))] * 12, us=1000)
    early = len(bench.got(1))
    for _ in range(1000):
        bench.messages(us=1000)
    late = early + len(bench.got(1))
    return f"{'at most 3' if early <= 3 else early}, then {'all' if late == 12 else late}"


@probe(13, "VF 0 sends to VF 1, whose traffic a rule mirrors to pool 3", "received by VFs 1 3")
def mirror(bench: Bench) -> str:
    bench.set(Regs.VMRCTL, VMRCTL.of(VPME=1, MP=3).value, 0)
    bench.set(Regs.VMRVM, 0b0010, 0)
    bench.send(0, frame(mac(1), mac(0)))
    return f"received by VFs {listed(bench.takers())}"


@probe(
    14,
    "a tagged frame comes to a legacy ring, VMOLR strips",
    "length 60, status 0b, tag 2005",
    LEGACY.replace(DROP_EN=1),
)
def legacy_receive(bench: Bench) -> str:
    bench.set(Regs.VMOLR, POOL.replace(STRVLAN=1).value, 1)
    bench.board.arrive(tagged(frame(mac(1)), 0x2005))
    word = bench.written(1, RX)
    return f"length {word & 0xFFFF}, status {word >> 32 & 0xFF:02x}, tag {word >> 48:x}"


@probe(14, "a legacy descriptor with VLE sends a frame", "done 1; received with its tag")
def legacy_transmit(bench: Bench) -> str:
    body = frame(mac(2), mac(0))
    address = bench.put(0, body)
    bench.post(0, (address, len(body) | TXD_EOP | TXD_IFCS | TXD_RS | TXD_VLE | 9 << TXL_VLAN_SHIFT))
    word = bench.written(0, TX)
    came = [got.body for got in bench.got(2)]
    what = {(): "nothing received", (tagged(body, 9),): "received with its tag", (body,): "received without its tag"}
    return f"done {word >> 32 & 1}; {what.get(tuple(came), 'something else received')}"


@probe(
    19,
    "a checksum by a context of MACLEN 20, IPLEN 20, UDP, in a frame of no known type",
    "the sum of bytes 40 to 59, at 46",
)
def checksum(bench: Bench) -> str:
    body = mac(1) + mac(0) + b"\x88\xb5" + bytes(range(46))
    address, word = to_send(bench.put(0, body), len(body))
    context = (20 | 20 << TXC_MACLEN_SHIFT, TXD_DTYP_CONTEXT | TXD_DEXT)
    bench.post(0, context, (address, word | TXD_TXSM))
    summed = body[:46] + (~ones_sum(body[40:]) & 0xFFFF).to_bytes(2, "big") + body[48:]
    what = {(): "nothing", (summed,): "the sum of bytes 40 to 59, at 46", (body,): "the frame as it was"}
    return what.get(tuple(got.body for got in bench.got(1)), "something else")


@probe(19, "a frame whose descriptor's PAYLEN is one too many", "received none")
def payload_length(bench: Bench) -> str:
    address, word = to_send(bench.put(0, frame(mac(1), mac(0))), 60)
    bench.post(0, (address, word + (1 << TXD_PAYLEN_SHIFT)))
    return f"received {len(bench.got(1)) or 'none'}"


@probe(20, "VF 1 receives a multicast; its VFMPRC at 10138 and 1013c", "1 and 1")
def multicast_count(bench: Bench) -> str:
    for i in range(128):
        bench.set(Regs.MTA, 0xFFFFFFFF, i)
    bench.set(Regs.VMOLR, POOL.replace(ROMPE=1).value, 1)
    bench.board.arrive(frame(GROUP))
    return f"{bench.peek(0x10138)} and {bench.peek(0x1013C)}"
