"""Transmit, case by case: who may send, what waits for what, and that nothing is sent twice or to the wrong pool."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from unit.nicrig import (
    EOP,
    IFCS,
    IXSM,
    RS,
    TCP,
    TSE,
    TX_DATA,
    TXSM,
    VLE,
    Rig,
    context,
    data,
    ether,
    mac,
    rid,
    tagged,
)
from unit.packets import ipv4, wrap
from virtfn.kernels.card import EV_CAPTURE, EV_MALICIOUS, EV_TIMER
from virtfn.kernels.i82576.switch import LOCAL_VLAN

ALL = (1 << 48) - 1


@pytest.fixture
def b() -> Iterator[Rig]:
    made = Rig()
    made.open_tx(0)
    yield made
    made.close()


def to(n: int, size: int = 100, src: int = mac(0), mark: int = 0) -> bytes:
    return ether(mac(n), src, payload=bytes([mark]), size=size)


def tso(b: Rig, q: int, payload: int, mss: int) -> list[bytes]:
    """Post a large send to pool 1; returns the payloads of its segments."""
    frame = wrap(ipv4(6, bytes(i * 7 & 0xFF for i in range(payload))), src=mac(q % 8))
    at = b.store(q % 8, frame)
    b.post(q, context(mss=mss), data(at, len(frame), EOP | RS | TSE | TXSM | IXSM, payload))
    return [frame[54 + i : 54 + i + mss] for i in range(0, payload, mss)]


# Who may send.


@pytest.mark.parametrize("spoof_int", [0, 1])
def test_foreign_source_address_is_dropped_and_reported(b: Rig, spoof_int: int) -> None:
    b.set(mac_spoof_pools=1, spoof_int=spoof_int)
    b.open_rx(1)
    b.send(0, to(1, src=mac(2)), to(1, mark=1), to(1, src=ALL))
    _, events = b.serve()
    assert [f.data for f in b.frames(1)] == [to(1, mark=1)]
    assert b.drops() == {(0, "mac-spoof"): 2}
    assert (b.counter("ssvpc"), b.stat(0, "gptc"), b.head(1, 0)) == (2, 1, 3)
    assert (bool(events & EV_MALICIOUS), int(b.port["misbehaved"])) == (bool(spoof_int), spoof_int)
    assert b.port["blocked"] == 0


def test_foreign_vlan_is_dropped(b: Rig) -> None:
    b.set(vlan_spoof_pools=1, spoof_int=1)
    b.nic["vlans"][5], b.nic["vlans"][6] = 0x1FF, 0x1FE
    b.open_rx(1)
    b.send(0, tagged(to(1), 0xE005), tagged(to(1), 6), to(1), tagged(to(1), 7))
    b.serve()
    assert [f.data for f in b.frames(1)] == [tagged(to(1), 0xE005), to(1)]
    assert b.drops() == {(0, "vlan-spoof"): 2}


def test_vlan_is_checked_after_the_port_has_inserted_its_own(b: Rig) -> None:
    b.set(vlan_spoof_pools=1)
    b.pool(0, vlan_mode=1, vlan_tag=0x6005)
    b.nic["vlans"][5] = 1
    b.open_rx(1)
    b.send(0, to(1))
    b.serve()
    assert [f.data for f in b.frames(1)] == [tagged(to(1), 0x6005)]
    b.nic["vlans"][5] = 2
    b.set(era=2)
    b.send(0, to(1), tagged(to(1), 5))
    b.serve()
    assert b.drops() == {(0, "vlan-spoof"): 2}


def test_nonsense_blocks_the_queue_until_it_is_let_go(b: Rig) -> None:
    b.set(mdp=1)
    b.open_rx(1)
    at = b.store(0, to(1))
    b.post(0, data(at, 100), data(at, 100, payload=99), data(at, 100))
    _, events = b.serve()
    assert events & EV_MALICIOUS
    assert (int(b.port["blocked"]), int(b.port["misbehaved"])) == (1, 1)
    assert (len(b.frames(1)), b.head(1, 0)) == (1, 2)
    assert b.drops() == {(0, "malformed"): 1}
    b.set(misbehaved=0)
    assert b.serve() == (0, 0)
    b.set(blocked=0)
    b.serve()
    assert len(b.frames(1)) == 1


def test_a_tail_outside_the_ring_is_reported_once(b: Rig) -> None:
    b.regs[1, 0, 6] = 64
    assert b.serve()[1] & EV_MALICIOUS
    b.set(misbehaved=0)
    assert not b.serve()[1] & EV_MALICIOUS
    b.regs[1, 0, 6] = 65
    assert b.serve()[1] & EV_MALICIOUS
    b.open_rx(1)
    b.send(0, to(1))
    b.serve()
    assert len(b.frames(1)) == 1


def test_disabled_pool_and_port_send_nothing(b: Rig) -> None:
    b.open_rx(1)
    b.send(0, to(1))
    for off in ({"tx_pools": 0xFE}, {"tx_pools": 0xFF, "tx_enable": 0}):
        b.set(**off)
        assert b.serve() == (0, 0)
        assert (b.head(1, 0), b.frames(1)) == (0, [])
    b.set(tx_enable=1)
    b.serve()
    assert len(b.frames(1)) == 1


# Where frames go.


def test_group_frames_go_to_all_others_and_to_the_wire(b: Rig) -> None:
    b.set(wire_up=1)
    for q in (0, 1, 2):
        b.open_rx(q)
    frame = ether(ALL, mac(0), size=100)
    b.send(0, frame)
    b.serve()
    assert [len(b.frames(q)) for q in (0, 1, 2)] == [0, 1, 1]
    assert (b.stat(0, "gptc"), b.stat(0, "gptlbc"), b.stat(0, "gotlbc")) == (1, 1, 104)
    assert (b.counter("gptc"), b.counter("bptc"), b.counter("gotc"), b.counter("ptc127")) == (1, 1, 104, 1)
    assert (b.counter("rpthc"), b.counter("flooded"), b.counter("forwarded"), b.counter("hgptc")) == (2, 1, 0, 1)
    for n in (1, 2):
        assert [b.stat(n, s) for s in ("gprc", "gorc", "mprc", "gprlbc", "gorlbc")] == [1, 104, 1, 1, 104]
    assert b.drops() == {(n, "queue-disabled"): 1 for n in range(3, 8)}
    assert b.counter("roc") == 0


def test_sender_hears_itself_only_with_lle(b: Rig) -> None:
    b.open_rx(0)
    b.send(0, to(0))
    b.serve()
    assert b.drops() == {(0, "echo"): 1}
    b.set(lle_pools=1)
    b.send(0, to(0))
    b.serve()
    assert [f.status for f in b.frames(0)] == [0x40003]


def test_local_vlan_never_reaches_the_wire(b: Rig) -> None:
    b.set(wire_up=1)
    b.nic["vlans"][5] = 3 | LOCAL_VLAN
    b.open_rx(1)
    for loopback in (1, 0):
        b.set(loopback=loopback)
        for dst in (ALL, mac(1), mac(12)):
            b.send(0, tagged(ether(dst, mac(0), size=80), 5))
    b.serve()
    assert (b.counter("gptc"), b.stat(0, "gptc")) == (0, 6)
    b.send(0, tagged(ether(ALL, mac(0), size=80), 6))
    b.serve()
    assert b.counter("gptc") == 1


def test_mirror_gives_nothing_back_to_the_sender(b: Rig) -> None:
    b.nic["mirrors"][0] = 1, 1 << 0, 0, 0xFF  # whatever any pool receives goes to pool 0 as well
    b.set(mirror=1)
    for q in (0, 1, 3):
        b.open_rx(q)
    b.open_tx(3)
    b.send(0, to(1))
    b.send(3, to(1, src=mac(3)))
    b.serve()
    assert [len(b.frames(q)) for q in (0, 1)] == [1, 2]


def test_loopback_of_the_port_counts_what_nobody_takes(b: Rig) -> None:
    b.set(self_loop=1, vmdq=0)
    b.open_rx(0)
    b.pool(0, max_frame=1518)
    b.set(max_frame=1518, max_tagged=1522)
    b.send(0, to(0), to(12))
    b.serve()
    assert len(b.frames(0)) == 1
    assert b.drops() == {(0, "no-match"): 1}


def test_no_uplink(b: Rig) -> None:
    b.set(vmdq=0)
    b.send(0, to(1))
    b.serve()
    assert b.drops() == {(0, "no-uplink"): 1}


# Offloads that the property tests do not pin down.


def test_two_contexts(b: Rig) -> None:
    b.open_rx(1)
    at = b.store(0, to(1))
    b.post(0, context(vlan=0x2005, idx=0), context(vlan=0x4006, idx=1))
    b.post(0, data(at, 100, EOP | VLE, idx=1), data(at, 100, EOP | VLE, idx=0), data(at, 100, EOP | RS))
    b.serve()
    assert [f.data for f in b.frames(1)] == [tagged(to(1), 0x4006), tagged(to(1), 0x2005), to(1)]


def test_port_vlan_goes_around_a_tag_that_is_there(b: Rig) -> None:
    b.pool(0, vlan_mode=1, vlan_tag=0x0009)
    b.open_rx(1)
    b.send(0, tagged(to(1), 5))
    b.serve()
    assert [f.data for f in b.frames(1)] == [tagged(tagged(to(1), 5), 9)]


def test_largest_send(b: Rig) -> None:
    """PAYLEN has 18 bits: 262143 bytes."""
    b.set(capture=1)
    head = wrap(ipv4(6, b""))
    at = b.store(0, head)
    block = b.store(0, bytes(65535))
    b.post(0, context(mss=9000), data(at, 54, TSE | TXSM | IXSM, 262143))
    b.post(0, *(data(block, 65535, TSE, 262143) for _ in range(4)), data(block, 3, EOP | RS | TSE, 262143))
    b.serve()
    sizes = [len(f) for f in b.captured(0, outbound=True)]
    assert sizes == [9054] * 29 + [262143 - 29 * 9000 + 54]
    assert (b.head(1, 0), b.drops(), b.counter("tsctc")) == (
        7,
        {(1, "oversize"): 29, (1, "queue-disabled"): 1},
        1,
    )


def test_chain_longer_than_anything_is_malformed(b: Rig) -> None:
    at = b.store(0, bytes(65535))
    b.post(0, *(data(at, 65535, 0) for _ in range(5)), data(at, 60, EOP | RS), data(b.store(0, to(1)), 100))
    b.open_rx(1)
    b.serve()
    assert b.drops() == {(0, "malformed"): 1}
    assert (b.head(1, 0), len(b.frames(1))) == (7, 1)


def test_a_ring_full_of_one_open_chain_is_malformed(b: Rig) -> None:
    at = b.store(0, to(1))
    b.post(0, *(data(at, 10, 0) for _ in range(62)))
    assert b.serve() == (0, 0)
    assert b.head(1, 0) == 0
    b.post(0, data(at, 10, 0))
    b.serve()
    assert (b.head(1, 0), b.drops()) == (63, {(0, "malformed"): 1})


def test_refused_buffer_costs_its_frame_only(b: Rig) -> None:
    b.open_rx(1)
    good, bad = b.store(0, to(1)), b.store(0, to(1))
    b.protect(0, bad)
    b.post(0, data(bad, 100), data(good, 40, 0, 100), data(bad, 30, 0, 100), data(good, 30, EOP | RS, 100))
    b.post(0, data(good, 100))
    b.serve()
    assert [f.data for f in b.frames(1)] == [to(1)]
    assert (b.drops(), b.head(1, 0)) == ({(0, "dma-fault"): 2}, 5)
    assert b.faults >= 2


def test_refused_ring_stops_its_queue(b: Rig) -> None:
    b.open_tx(1)
    b.open_rx(2)
    b.send(0, to(2))
    b.send(1, to(2, src=mac(1)))
    b.protect(0, b.ring(1, 0), 1)  # the device may not write it back
    b.serve()
    assert len(b.frames(2)) == 1
    assert b.drops() == {(0, "dma-fault"): 1}
    assert b.regs[1, 0, 10] == 0  # it reads as stopped, and starts when it is enabled anew
    b.protect(0, b.ring(1, 0), 3)
    b.serve()
    b.regs[1, 0, 10] = 1 << 25
    b.serve()
    assert len(b.frames(2)) == 1


def test_refused_head_write_back_harms_nobody(b: Rig) -> None:
    b.open_tx(0, head_wb=True)
    b.open_rx(1)
    b.protect(0, b.head_wb(0), 1)
    b.send(0, to(1))
    b.serve()
    assert (len(b.frames(1)), b.head(1, 0)) == (1, 1)
    assert b.port["eicr"] & 1


# Waiting.


def test_rate_limit_in_virtual_time(b: Rig) -> None:
    b.pool(0, ps_per_byte=8000)  # 1 Gb/s
    b.open_rx(1, 64, fill=63)
    now = 10_000_000_000
    b.pool(0, next_ps=now)
    for _ in range(20):
        b.send(0, to(1, 996))
    sent = []
    for step in range(40):
        b.serve(now + step * 4_000_000)
        sent.append(b.stat(0, "gptc"))
    assert sent[:6] == [1, 1, 2, 2, 3, 3]  # 1000 bytes are 8 us
    assert sent[-1] == 20
    assert b.serve(now + 160_000_000) == (0, 0)
    b.pool(0, next_ps=now + 1000)
    b.send(0, to(1))
    assert b.serve(now)[1] & EV_TIMER
    assert b.stat(0, "gptc") == 20


def test_idle_credit_is_bounded(b: Rig) -> None:
    b.pool(0, ps_per_byte=8000)
    b.open_tx(0, 256)
    b.pool(1, max_frame=9728)
    b.open_rx(1, 64, drop=True)
    b.send(0, *(to(12, 9000) for _ in range(100)))
    b.serve(10**12, budget=256)
    assert b.stat(0, "gptc") * 9004 * 8000 <= 2_000_000_000 + 9004 * 8000


def test_wire_pace_holds_back_only_the_wire(b: Rig) -> None:
    b.set(wire_up=1, wire_ps_per_byte=8000)
    b.open_tx(1)
    b.open_rx(2)
    now = 10**12
    b.set(wire_next_ps=now + 1)
    b.send(0, to(12))
    b.send(1, to(2, src=mac(1)))
    _, events = b.serve(now)
    assert events & EV_TIMER
    assert (b.counter("gptc"), len(b.frames(2)), b.head(1, 0)) == (0, 1, 0)
    b.serve(now + 1)
    assert (b.counter("gptc"), b.head(1, 0), int(b.port["wire_next_ps"]) > now) == (1, 1, True)


def test_two_large_sends_that_wait_for_the_wire_keep_their_own_progress(b: Rig) -> None:
    b.set(wire_up=1, wire_ps_per_byte=8000, capture=1)
    b.open_tx(1)
    for n in (0, 1):
        b.pool(n, max_frame=9728)
    b.set_macs({mac(0): 1, mac(1): 2})
    wanted = {}
    for q in (0, 1):
        frame = wrap(ipv4(6, bytes((q * 100 + i) & 0xFF for i in range(5000))), dst=mac(12), src=mac(q))
        b.post(q, context(mss=1000), data(b.store(q, frame), len(frame), EOP | RS | TSE | TXSM | IXSM, 5000))
        wanted[q] = [frame[54 + i : 1054 + i] for i in range(0, 5000, 1000)]
    now = 10**12
    b.set(wire_next_ps=now)
    waits = 0
    for step in range(30):
        waits += bool(b.serve(now + step * 4_000_000)[1] & EV_TIMER)
    assert waits > 10
    assert (b.head(1, 0), b.head(1, 1)) == (2, 2)
    for q in (0, 1):
        assert [f[54:] for f in b.captured(q, outbound=True)] == wanted[q]
    assert b.counter("gptc") == 10
    assert b.counter("tsctc") == 2


def test_large_send_goes_on_where_it_stalled(b: Rig) -> None:
    b.open_rx(1, 8, drop=False, fill=3)
    wanted = tso(b, 0, 7000, 1000)
    b.send(0, to(1))
    got: list[bytes] = []
    for _ in range(10):
        b.serve()
        came = b.frames(1)
        got += [f.data for f in came]
        b.refill(1, len(came))
    assert [f[54:] for f in got[:-1]] == wanted
    assert got[-1] == to(1)
    assert (b.stat(0, "gptc"), b.stat(1, "gprc"), b.counter("tsctc")) == (8, 8, 1)


def test_a_capture_that_is_full_is_asked_for_room_before_every_segment(b: Rig) -> None:
    b.set(capture=1)
    b.pool(1, max_frame=9728)
    tso(b, 0, 9000, 1)  # 9000 segments, more than the capture has records
    seen = 0
    for _ in range(60):
        _, events = b.serve()
        assert int(b.port["capture_head"]) <= len(b.nic["capture"])
        assert int(b.port["capture_bytes"]) <= len(b.nic["captured"])
        if events & EV_CAPTURE or b.head(1, 0) == 2:
            seen += len(b.captured(0, outbound=True))
            b.set(capture_head=0, capture_bytes=0)
        if b.head(1, 0) == 2:
            break
    assert (seen, b.stat(0, "gptc"), b.head(1, 0)) == (9000, 9000, 2)


@pytest.fixture
def held(b: Rig) -> Rig:
    """Pool 0 sends to all; pool 1 has had the frame, pool 2 has no descriptor and may not drop."""
    b.set(rx_pools=0b110)
    b.open_rx(1)
    b.open_rx(2, drop=False, fill=0)
    b.open_tx(3)
    b.send(0, ether(ALL, mac(0), size=100), to(1, mark=9))
    b.send(3, to(1, src=mac(3)))
    b.serve()
    assert [len(b.frames(q)) for q in (1, 2)] == [1, 0]
    assert (b.head(1, 0), b.head(1, 3), int(b.port["stalled"])) == (0, 0, 1)
    return b


def test_the_line_waits_and_nobody_gets_a_frame_twice(held: Rig) -> None:
    held.serve()
    assert held.frames(1) == []
    held.refill(2, 1)
    held.serve()
    assert [f.data for f in held.frames(2)] == [ether(ALL, mac(0), size=100)]
    assert [f.data for f in held.frames(1)] == [to(1, mark=9), to(1, src=mac(3))]
    assert (held.stat(0, "gptc"), held.stat(1, "gprc"), held.stat(2, "gprc"), held.port["stalled"]) == (2, 3, 1, 0)
    assert (held.counter("rpthc"), held.counter("flooded")) == (4, 1)


@pytest.mark.parametrize("what", ["disable", "tail", "vfte", "block", "open", "ring"])
def test_a_sender_cannot_hold_the_line_without_its_frame(held: Rig, what: str) -> None:
    """Whatever the sender does to a frame that waits, everybody else goes on."""
    match what:
        case "disable":
            held.regs[1, 0, 10] = 0
        case "tail":
            held.regs[1, 0, 6] = 0
        case "vfte":
            held.set(tx_pools=0xFE)
        case "block":
            held.set(blocked=1)
        case "open":
            held.put(1, 0, 0, *data(TX_DATA, 100, 0))
            held.put(1, 0, 1, *data(TX_DATA, 100, 0))
        case "ring":
            held.protect(0, held.ring(1, 0))
    held.serve()
    assert [f.data for f in held.frames(1)] == [to(1, src=mac(3))]
    assert held.port["stalled"] == 0


@pytest.mark.parametrize("q1", [data(TX_DATA, 100, payload=99), data(TX_DATA, 10), context(), data(1 << 40, 100)])
def test_a_frame_that_turned_bad_while_it_waited_is_dropped(held: Rig, q1: tuple[int, int]) -> None:
    held.put(1, 0, 0, *q1)
    held.refill(2, 4)
    held.serve()
    assert held.frames(2) == []
    assert [f.data for f in held.frames(1)] == [to(1, mark=9), to(1, src=mac(3))]
    assert held.port["stalled"] == 0


def test_a_frame_is_checked_again_when_it_goes_on(held: Rig) -> None:
    """The sender rewrites its buffer between two attempts: spoofed now, or for somebody else."""
    held.set(mac_spoof_pools=1)
    held.write(0, TX_DATA, ether(ALL, mac(5), size=100))
    held.refill(2, 4)
    held.serve()
    assert held.frames(2) == []
    assert held.drops()[0, "mac-spoof"] == 1
    assert len(held.frames(1)) == 2


def test_a_frame_that_changed_its_target_goes_to_no_pool_that_was_not_owed(held: Rig) -> None:
    held.write(0, TX_DATA, to(1))
    held.refill(2, 4)
    held.serve()
    assert held.frames(2) == []
    assert [f.data for f in held.frames(1)] == [to(1, mark=9), to(1, src=mac(3))]


def test_a_pool_that_is_switched_off_is_not_waited_for(held: Rig) -> None:
    held.set(rx_pools=0b010)
    held.serve()
    assert (held.port["stalled"], len(held.frames(1))) == (0, 2)


def test_a_sender_over_its_rate_does_not_hold_up_others(held: Rig) -> None:
    held.pool(0, ps_per_byte=8000, next_ps=1 << 60)
    held.refill(2, 1)
    held.serve()
    assert len(held.frames(2)) == 1
    assert [f.data for f in held.frames(1)] == [to(1, src=mac(3))]


def test_bus_master_comes_back(b: Rig) -> None:
    b.open_rx(1)
    rows = b.nic["tx"], b.nic["rx"]
    kept = [int(rows[0][0]["regs"]), int(rows[1][1]["regs"])]
    b.send(0, to(1))
    b.serve()
    rows[0][0]["regs"] = rows[1][1]["regs"] = 0
    b.send(0, to(1))
    b.wire(to(1))
    assert b.serve() == (0, 0)
    assert b.drops() == {(1, "queue-disabled"): 1}
    rows[0][0]["regs"], rows[1][1]["regs"] = kept
    b.serve()
    assert len(b.frames(1)) == 2


def test_every_pool_reaches_its_own_memory_only(b: Rig) -> None:
    """The same guest addresses in all pools, and each finds its own bytes."""
    for q in range(8):
        b.open_tx(q)
        b.open_rx(q)
    for q in range(8):
        b.send(q, to((q + 1) % 8, src=mac(q), mark=q))
    b.serve()
    for q in range(8):
        assert [f.data for f in b.frames(q)] == [to(q, src=mac((q - 1) % 8), mark=(q - 1) % 8)]
    assert rid(7) == 0x18E
    assert np.count_nonzero(b.nic["drops"]) == 0


def test_tcp_flags_and_sequence_over_the_wrap(b: Rig) -> None:
    b.open_rx(1)
    frame = bytearray(wrap(ipv4(6, bytes(300))))
    frame[38:42] = b"\xff\xff\xff\x80"
    frame[47] = 0x19  # ACK, PSH, FIN
    b.post(
        0, context(mss=100, l4t=TCP), data(b.store(0, bytes(frame)), len(frame), EOP | IFCS | TSE | TXSM | IXSM, 300)
    )
    b.serve()
    got = [(f.data[38:42].hex(), f.data[47]) for f in b.frames(1)]
    assert got == [("ffffff80", 0x10), ("ffffffe4", 0x10), ("00000048", 0x19)]
