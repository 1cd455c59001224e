"""Forward: one whole frame of a pool through the switch, to the pools and the wire that it is for.

sender check -> switching -> wire: pace, statistics, uplink
-> pools: classified once, received by each; those that cannot take it hold up the line
"""

from __future__ import annotations

from virtfn.hw.eth import BROADCAST, IPV4_LOADED, IPV6_LOADED
from virtfn.hw.i82576.desc import RXD_LB, RXD_VEXT
from virtfn.kernels._jit import Row, apart, kernel, load8, load16, load64, part
from virtfn.kernels.csum import swap16
from virtfn.kernels.i82576.classify import classify
from virtfn.kernels.i82576.departures import depart
from virtfn.kernels.i82576.rx import RX_DONE, RX_OVERSIZE, RX_STALL, receive, strip_tag, strips
from virtfn.kernels.i82576.seen import capture_frame, drop_seen, tap_frame, tap_sent
from virtfn.kernels.i82576.shares import has_turn, is_scarce
from virtfn.kernels.i82576.state import (
    DROP_NO_UPLINK,
    DROP_STORM,
    DROP_WITHDRAWN,
    LOWEST,
    NIC,
    PLAIN_TAG_AT,
    SPLIT_AREA,
    WIRE,
)
from virtfn.kernels.i82576.storm import is_storm
from virtfn.kernels.i82576.switch import MAC, switch_receive, switch_transmit, why_spoofed
from virtfn.kernels.i82576.work import CLASSIFY_WORK, FRAME_WORK, SWITCH_WORK, copy_work, sum_work
from virtfn.kernels.tapring import TAP_DROP, TAP_RX, TAP_TX

__all__ = [
    "BURST_PS",
    "FORWARDED",
    "STALLED",
    "WAITING",
    "YIELDED",
    "count_size",
    "forward",
    "spread",
    "tag_of",
    "tap_receiver",
]

FORWARDED, STALLED, WAITING, YIELDED = range(4)
BURST_PS = 2_000_000_000  # credit that an idle sender, or wire, keeps: 2 ms


@part
def count_size(nic: Row, length: int, sent: bool) -> None:
    """Count a frame of the wire by size, as the port's statistics do: with the frame check sequence."""
    c = nic.counters
    size = length + 4
    out = 1 if sent else 0
    into = 1 - out
    if size <= 64:
        c.ptc64 += out
        c.prc64 += into
    elif size <= 127:
        c.ptc127 += out
        c.prc127 += into
    elif size <= 255:
        c.ptc255 += out
        c.prc255 += into
    elif size <= 511:
        c.ptc511 += out
        c.prc511 += into
    elif size <= 1023:
        c.ptc1023 += out
        c.prc1023 += into
    else:
        c.ptc1522 += out
        c.prc1522 += into


@part
def tag_of(nic: Row, head: int, length: int) -> int:
    """Return the VLAN tag of a frame that filters look at, -1 if it has none.

    With CTRL_EXT.EXT_VLAN that is the tag behind the outer one, which is nobody's business here.
    """
    p = nic.port
    if load16(head + 12) != p.tag_kind or length < p.tag_at + 6:
        return -1
    if p.tag_at != PLAIN_TAG_AT and load16(head + p.tag_at) != p.inner_kind:
        return -1
    return swap16(load16(head + p.tag_at + 2))


@part
def network_start(nic: Row, head: int, tci: int) -> int:
    """Tell where a frame's network header begins, behind its tags; 0: it lacks the outer one, and nobody looks."""
    p = nic.port
    if p.tag_at != PLAIN_TAG_AT and load16(head + 12) != p.tag_kind:
        return 0
    return p.tag_at + (6 if tci >= 0 else 2)


@apart(NIC, int, int, int, int, int, int, gives=1)
def spread(nic: Row, pools: int, head: int, body: int, length: int, tci: int, looped: bool) -> int:
    """Give a frame to each pool in the bitmap. Returns the pools that still lack it because the line is held up."""
    p = nic.port
    start = network_start(nic, head, tci)
    q0 = 0
    status = RXD_LB if looped else 0
    if p.tag_at != PLAIN_TAG_AT and start:
        status |= RXD_VEXT
    kind = load16(head + start - 2) if start else 0
    if kind == IPV4_LOADED or kind == IPV6_LOADED:
        q0, verdict = classify(nic, head, body, length, start)
        nic.turn.work += CLASSIFY_WORK + sum_work(length, False)
        status |= verdict
    replicated = pools & (pools - 1) != 0 or (load8(head) & 1 != 0 and p.replicate != 0 and p.vmdq != 0)
    if p.stalled:
        replicated = p.stall_replicated != 0
    capture = p.capture
    fits = looped or p.stalled != 0
    while pools:
        pool = LOWEST[pools & 0xFF]
        code = receive(nic, pool, head, body, length, tci, replicated, q0, status)
        nic.turn.work += FRAME_WORK + copy_work(length) << int(replicated)
        if code == RX_STALL:
            p.stall_replicated = replicated
            return pools
        if code != RX_OVERSIZE:
            fits = True
        if code == RX_DONE:
            nic.turn.taken += length + 4
            nic.counters.rpthc += 1
            nic.counters.hgorc += length + 4
            if looped:
                owner = nic.pools[pool]
                owner.gprlbc += 1
                owner.gorlbc += length + 4
            if capture:
                capture_frame(nic, pool, 0, head, body, length)
        else:
            nic.dropped_bytes[pool] += length + 4
        if nic.seen.points:
            tap_receiver(nic, pool, code == RX_DONE, head, body, length, tci, replicated)
        pools &= pools - 1
    if not fits:
        nic.counters.roc += 1
    return 0


@part
def tap_receiver(nic: Row, pool: int, got: bool, head: int, body: int, length: int, tci: int, replicated: bool) -> None:
    """Let taps see what a pool got of a frame, without the tag if that was stripped, or that it got nothing."""
    if not got:
        tap_frame(nic, TAP_DROP, pool, 0, nic.seen.why, head, body, length)
    elif strips(nic, pool, tci, replicated):
        bare = nic.port.scratch + SPLIT_AREA
        strip_tag(nic, bare, head, body, length)
        tap_frame(nic, TAP_RX, pool, 0, 0, bare, bare, length - 4)
    else:
        tap_frame(nic, TAP_RX, pool, 0, 0, head, body, length)


@kernel
def check_sender(nic: Row, q: int, pool: int, vid: int, head: int, body: int, length: int) -> bool:
    """Anti-spoofing: the source address, and the VLAN, must be the pool's own where DTXSWC says so."""
    p = nic.port
    reason = why_spoofed(nic, pool, load64(head + 6) & MAC, vid)
    if reason < 0:
        return True
    if nic.seen.points:
        tap_frame(nic, TAP_TX, pool, 1, 0, head, body, length)
    drop_seen(nic, pool, 1, reason, head, body, length)
    nic.counters.ssvpc += 1
    if p.spoof_int:
        p.misbehaved |= 1 << q
    return False


@part
def ask_leave(nic: Row, q: int, pool: int, target: int, wire: bool) -> int:
    """Ask whether a frame may go now, to the wire or to the scarce receiver `target` (-1: none).

    Returns FORWARDED, or what `forward` returns of a frame that may not.
    """
    p = nic.port
    paced = is_paced(nic, wire)
    if paced and is_scarce(nic, WIRE) and not has_turn(nic, WIRE, pool):
        return YIELDED
    if target >= 0 and nic.turn.resumed == q + 1:
        nic.claims[target, pool] = nic.turn.turns
        return YIELDED
    if target >= 0 and not has_turn(nic, target, pool):
        return YIELDED
    if paced and p.wire_next_ps > p.now:
        nic.scarce[WIRE] = p.epoch
        nic.claims[WIRE, pool] = nic.turn.turns
        return WAITING
    return FORWARDED


@part
def is_paced(nic: Row, wire: bool) -> bool:
    """Tell whether a frame, if it is for the wire, takes time there."""
    p = nic.port
    return wire and p.wire_up != 0 and p.wire_ps_per_byte != 0


@part
def take_wire(nic: Row, pool: int, length: int) -> None:
    """Take the time on the wire of a frame of `length` bytes."""
    p = nic.port
    p.wire_next_ps = max(p.wire_next_ps, p.now - BURST_PS) + (length + 24) * p.wire_ps_per_byte
    nic.had[WIRE, pool] += length + 4
    nic.claims[WIRE, pool] = 0


@part
def count_sent(nic: Row, pool: int, pools: int, length: int) -> None:
    """Count a frame that `pool` has sent, wherever it goes."""
    owner = nic.pools[pool]
    owner.gptc += 1
    owner.gotc += length + 4
    nic.counters.hgptc += 1
    nic.counters.hgotc += length + 4
    if pools:
        if pools & (pools - 1):
            nic.counters.flooded += 1
        else:
            nic.card.forwarded += 1
        owner.gptlbc += 1
        owner.gotlbc += length + 4


@apart(NIC, int, int, int, int, gives=0)
def send_wire(nic: Row, destination: int, head: int, body: int, length: int) -> None:
    """Send a frame to the wire: count it as the port does, and leave it for the uplink."""
    p = nic.port
    c = nic.counters
    nic.turn.taken += length + 4
    c.gptc += 1
    c.gotc += length + 4
    c.tpt += 1
    c.tot += length + 4
    count_size(nic, length, True)
    if destination == BROADCAST:
        c.bptc += 1
    elif destination & 1:
        c.mptc += 1
    if p.capture:
        capture_frame(nic, WIRE, 1, head, body, length)
    if nic.seen.points:
        tap_frame(nic, TAP_RX, WIRE, 1, 0, head, body, length)
    if p.departures:
        depart(nic, head, body, length)


@part
def spread_scarce(nic: Row, pool: int, target: int, pools: int, head: int, body: int, length: int, tci: int) -> int:
    """Spread a frame of `pool`, and enter what of the scarce receiver `target` (-1: none) it has had."""
    taken = nic.turn.taken
    nic.turn.refused = 0
    left = spread(nic, pools, head, body, length, tci, True)
    if target >= 0:
        nic.had[target, pool] += nic.turn.taken - taken
        if nic.turn.taken != taken:
            nic.claims[target, pool] = 0
        elif nic.turn.refused:
            nic.claims[target, pool] = nic.turn.turns
    return left


@kernel
def forward(nic: Row, q: int, pool: int, head: int, body: int, length: int) -> int:
    """Send one whole frame of a pool through the switch.

    Returns FORWARDED (or dropped and counted); STALLED, its receiver holds up the line; WAITING, for the wire; or
    YIELDED, others go first. A frame that stalled is checked and switched again: its sender may have changed it.
    """
    p = nic.port
    tci = tag_of(nic, head, length)
    vid = tci & 0xFFF if tci >= 0 else -1
    destination = load64(head) & MAC
    if (p.mac_spoof_pools | p.vlan_spoof_pools) >> pool & 1 and not check_sender(nic, q, pool, vid, head, body, length):
        return FORWARDED
    pools, wire, why = switch_transmit(nic, pool, destination, vid)
    if wire and p.self_loop:
        back, why = switch_receive(nic, destination, vid)
        pools |= back
    target = -1
    if pools and pools & pools - 1 == 0 and is_scarce(nic, LOWEST[pools & 0xFF]):
        target = LOWEST[pools & 0xFF]
    if p.stalled:
        pools &= p.stall_pools
        if pools == 0:
            drop_seen(nic, pool, 1, why if why else DROP_WITHDRAWN, head, body, length)
    else:
        leave = ask_leave(nic, q, pool, target, wire)
        if leave != FORWARDED:
            return leave
        if p.storm and is_storm(nic, pool, destination, vid, pools, length):
            if nic.seen.points:
                tap_frame(nic, TAP_TX, pool, 1, 0, head, body, length)
            drop_seen(nic, pool, 1, DROP_STORM, head, body, length)
            return FORWARDED
        if is_paced(nic, wire):
            take_wire(nic, pool, length)
        if p.capture:
            capture_frame(nic, pool, 1, head, body, length)
        leaves = wire and p.wire_up != 0 and p.self_loop == 0
        if nic.seen.points:
            tap_sent(nic, pool, 1, pools | int(leaves) << WIRE, head, body, length)
        if wire or pools & pools - 1 or pools == 0:
            nic.turn.work += SWITCH_WORK
        count_sent(nic, pool, pools, length)
        if leaves:
            nic.to_wire[pool, 0] += 1
            nic.to_wire[pool, 1] += length + 4
            send_wire(nic, destination, head, body, length)
        elif pools == 0:
            no_uplink = wire and not p.self_loop and why == 0
            drop_seen(nic, pool, 1, DROP_NO_UPLINK if no_uplink else why, head, body, length)
    if pools == 0:
        return FORWARDED
    left = spread_scarce(nic, pool, target, pools, head, body, length, tci)
    p.stalled = q + 1 if left else 0
    if left:
        p.stall_pools = left
        return STALLED
    return FORWARDED
