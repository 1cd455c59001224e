"""What guests do with their queues: make frames, check frames, replay captures, answer pings. One row a guest.

A frame that the workload makes, little-endian:

    0  destination   6  source   12  88B5   14  sender   16  sequence number   24  check value   32  filler ...

The filler of each transmit buffer is its own random bytes; the check value covers addresses, sequence number, length
and every byte of filler, so a frame that is altered, cut, or put together from two is found. Receivers keep a bitmap of
the sequence numbers they have had from each sender: lost, repeated and reordered frames are counted exactly.

A replayed frame is known by a 64-bit digest, logged in the order of arrival.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.eth import ARP_LOADED, BROADCAST, LOCAL_EXPERIMENT_LOADED, VLAN_LOADED
from virtfn.kernels._jit import (
    Row,
    apart,
    copy_bytes,
    inlined,
    kernel,
    load8,
    load16,
    load32,
    load64,
    row_at,
    store8,
    store16,
    store32,
    store64,
)
from virtfn.kernels.clock import read_clock
from virtfn.kernels.csum import fold, sum_bytes, swap16
from virtfn.kernels.netdev import BATCH, ENTRY_BYTES, NETDEV, call_netdev, netdev_at

__all__ = [
    "DELAYS",
    "FINE",
    "GUESTS",
    "STAMPS",
    "TASK",
    "TRAFFIC",
    "digest",
    "fill_buffers",
    "poll_guest",
    "traffic_at",
]

IDLE, GENERATE, REPLAY, PING, ANSWER = range(5)

TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            # address of the driver's NETDEV row, who, what
            "netdev index kind mac ip peer_mac peer_ip length "
            # sending: first and next sequence number (generated) or frame (replayed), and where to stop
            "next stop targets "
            # of these, those that have arrived; ps between two of them, 0: as fast as can be; since when
            "heard pace_ps began "
            # not 0: only look at the ether type, which is this as it is loaded, and give back
            "raw "
            # replay: digests logged so far
            "logged "
            # ping: echo requests sent and answered, state (0 resolve, 1 ask, 2 wait)
            "asked answered step "
            # findings
            "corrupt repeated reordered foreign"
        ).split()
    ]
)


GUESTS = 64
STAMPS = 1 << 13  # frames that are under way between two guests, at most
FINE, DELAYS = 128, 128 * 34  # up to more than an hour
TRAFFIC = np.dtype(
    [
        # guests at work, descriptors of a transmit ring, 64-bit words of a `seen` bitmap, entries of a log
        *((name, np.int64) for name in "guests ring words room".split()),
        # addresses of tables that grow with the work, all of 64-bit words but the store:
        #   sums (guests, ring)           filler sum of each transmit buffer
        #   seen (guests, guests, words)  sequence numbers had, by receiver and sender
        #   store, offsets, lengths       frames to replay
        #   order                         frames by sender; a guest's are next..stop-1
        #   log (guests, room)            digests in order of arrival
        #   stamps (guests, guests, STAMPS) when a numbered frame was sent, in ps, by sender and receiver
        #   delays (guests, DELAYS)         how many frames took how long, by receiver (`note_delay`); both or neither
        *((name, np.int64) for name in "sums seen store offsets lengths order log stamps delays".split()),
        ("clock", np.int64),  # address of a CLOCK row, where there are stamps or paces
        ("window", np.int64),  # frames under way to each target, at most; 0: any number
        ("tasks", TASK, (GUESTS,)),
        ("targets", np.int64, (GUESTS, GUESTS)),  # addresses that a guest sends to in turn
        ("receivers", np.int64, (GUESTS, GUESTS)),  # whose they are
        ("sequence", np.int64, (GUESTS, GUESTS)),  # next sequence number, by sender and target
        ("highest", np.int64, (GUESTS, GUESTS)),  # highest sequence number had, by receiver and sender
    ]
)
traffic_at = row_at(TRAFFIC)

_K1 = 0x9E3779B97F4A7C15 - (1 << 64)
_K2 = 0xC2B2AE3D27D4EB4F - (1 << 64)


@kernel
def mix(value: int) -> int:
    """Spread a 64-bit number over all its bits."""
    value = (value ^ (value >> 32 & 0xFFFFFFFF)) * _K1
    value = (value ^ (value >> 29 & 0x7FFFFFFFF)) * _K2
    return value ^ (value >> 32 & 0xFFFFFFFF)


@kernel
def filler_sum(address: int, size: int) -> int:
    """Sum of `size` bytes as 64-bit words, each weighted by its place; order and value both matter."""
    total = 0
    words = size >> 3
    for i in range(words):
        total += load64(address + i * 8) * (2 * i + 1)
    for i in range(words << 3, size):
        total += load8(address + i) * (2 * i + 0x1000001)
    return total


@kernel
def check_value(frame: int, length: int, filler: int) -> int:
    """Check value of a generated frame: over addresses, sender, sequence number, length and the sum of its filler."""
    return mix(load64(frame) + mix(load64(frame + 8) + mix(load64(frame + 16) + mix(filler + length))))


@kernel
def digest(address: int, length: int) -> int:
    """64-bit digest of a frame."""
    total = mix(length)
    words = length >> 3
    for i in range(words):
        total = (total ^ load64(address + i * 8)) * _K1
        total ^= total >> 29 & 0x7FFFFFFFF
    for i in range(words << 3, length):
        total = (total ^ load8(address + i)) * _K2
    return mix(total)


@kernel
def fill_buffers(address: int, g: int, seed: int) -> None:
    """Write addresses and random filler into every transmit buffer of guest `g`, and remember sums and lengths.

    address: of the TRAFFIC row.
    """
    t = traffic_at(address)
    task = t.tasks[g]
    d = netdev_at(task.netdev)
    state = mix(seed + g)
    for i in range(d.tx_size):
        frame = d.tx_buffers + i * d.buffer_bytes
        for at in range(0, task.length, 8):
            state = mix(state + at + 1)
            if at + 8 <= d.buffer_bytes:
                store64(frame + at, state)
        store64(frame, t.targets[g, 0] | task.mac << 48)
        store32(frame + 8, task.mac >> 16)
        store16(frame + 12, LOCAL_EXPERIMENT_LOADED)
        store16(frame + 14, g)
        store64(t.sums + (g * t.ring + i) * 8, filler_sum(frame + 32, task.length - 32))
        store64(d.tx_lengths + i * 8, task.length)


@inlined
def tx_buffer(d: Row) -> int:
    """Address of the buffer that the next frame goes into."""
    return d.tx_buffers + d.tx_tail * d.buffer_bytes


@kernel
def send_one(d: Row, task: Row, length: int) -> None:
    """Send the frame that is in the next buffer."""
    store64(d.tx_lengths + d.tx_tail * 8, length)
    call_netdev(d.tx_send, task.netdev, 1)


@kernel
def send_generated(t: Row, g: int, d: Row, budget: int) -> int:
    """Send up to `budget` frames of guest `g`'s own making."""
    task = t.tasks[g]
    count = min(min(call_netdev(d.tx_room, task.netdev, 0), budget), task.stop - task.next)
    if t.window:
        count = min(count, t.window * task.targets - (task.next - task.heard))
    if task.pace_ps and count > 0:
        count = min(count, (read_clock(t.clock) - task.began) // task.pace_ps - task.next)
    if count <= 0:
        return 0
    if not task.raw:
        number_frames(t, g, d, count)
    task.next += count
    call_netdev(d.tx_send, task.netdev, count)
    return count


@kernel
def number_frames(t: Row, g: int, d: Row, count: int) -> None:
    """Address the next `count` buffers of guest `g`, number them, and let their check values say so."""
    task = t.tasks[g]
    tail = d.tx_tail
    now = read_clock(t.clock) if t.stamps else 0
    for i in range(count):
        frame = d.tx_buffers + tail * d.buffer_bytes
        k = (task.next + i) % task.targets
        store32(frame, t.targets[g, k])
        store16(frame + 4, t.targets[g, k] >> 32)
        number = t.sequence[g, k]
        t.sequence[g, k] = number + 1
        if t.stamps:
            store64(stamp_of(t, g, t.receivers[g, k], number), now)
        store64(frame + 16, number)
        store64(frame + 24, check_value(frame, task.length, load64(t.sums + (g * t.ring + tail) * 8)))
        tail = tail + 1 if tail + 1 < d.tx_size else 0


@inlined
def stamp_of(t: Row, sender: int, receiver: int, number: int) -> int:
    """Address of the time when a numbered frame was sent; many later ones overwrite it."""
    return t.stamps + ((sender * t.guests + receiver) * STAMPS + (number & STAMPS - 1)) * 8


@kernel
def note_delay(t: Row, g: int, sender: int, number: int, now: int) -> None:
    """Count a frame by how long it was under way.

    Delays of less than 2 * FINE ns are counted one by one, longer ones in FINE classes for each power of two.
    """
    delay = (now - load64(stamp_of(t, sender, g, number))) // 1000
    place = max(delay, 0)
    power = 0
    while place >> power >= 2 * FINE:
        power += 1
    place = min(power * FINE + (place >> power), DELAYS - 1)
    at = t.delays + (g * DELAYS + place) * 8
    store64(at, load64(at) + 1)


@apart(TRAFFIC, int, NETDEV, int, gives=1)
def send_replayed(t: Row, g: int, d: Row, budget: int) -> int:
    """Send up to `budget` frames of the capture that are guest `g`'s."""
    task = t.tasks[g]
    count = min(min(call_netdev(d.tx_room, task.netdev, 0), budget), task.stop - task.next)
    if count <= 0:
        return 0
    tail = d.tx_tail
    for _ in range(count):
        k = load64(t.order + task.next * 8)
        length = load64(t.lengths + k * 8)
        copy_bytes(d.tx_buffers + tail * d.buffer_bytes, t.store + load64(t.offsets + k * 8), length)
        store64(d.tx_lengths + tail * 8, length)
        tail = tail + 1 if tail + 1 < d.tx_size else 0
        task.next += 1
    call_netdev(d.tx_send, task.netdev, count)
    return count


@kernel
def check_generated(t: Row, g: int, frame: int, length: int, now: int) -> None:
    """Check one received frame against what its sender must have sent. now: the time, where there are stamps."""
    task = t.tasks[g]
    if load16(frame + 12) != LOCAL_EXPERIMENT_LOADED:
        task.foreign += 1
        return
    sender = load16(frame + 14)
    number = load64(frame + 16)
    if length < 40 or load64(frame + 24) != check_value(frame, length, filler_sum(frame + 32, length - 32)):
        task.corrupt += 1
        return
    if sender >= t.guests or number < 0 or number >> 6 >= t.words:
        task.corrupt += 1
        return
    at = t.seen + ((g * t.guests + sender) * t.words + (number >> 6)) * 8
    had = load64(at)
    if had >> (number & 63) & 1:
        task.repeated += 1
        return
    store64(at, had | 1 << (number & 63))
    t.tasks[sender].heard += load64(frame) & BROADCAST == task.mac  # not what was only flooded here
    if t.stamps:
        note_delay(t, g, sender, number, now)
    if number < t.highest[g, sender]:
        task.reordered += 1
    else:
        t.highest[g, sender] = number


@kernel
def put_addresses(frame: int, target: int, source: int) -> None:
    """Write destination and source addresses."""
    store64(frame, target | source << 48)
    store32(frame + 8, source >> 16)


@apart(NETDEV, TASK, int, int, int, gives=0)
def send_arp(d: Row, task: Row, operation: int, target: int, target_ip: int) -> None:
    """Send an ARP request or reply for this guest's address."""
    frame = tx_buffer(d)
    for i in range(0, 64, 8):
        store64(frame + i, 0)
    put_addresses(frame, 0xFFFFFFFFFFFF if operation == 1 else target, task.mac)
    store16(frame + 12, ARP_LOADED)
    store32(frame + 14, 0x00080100)
    store16(frame + 18, 0x0406)
    store16(frame + 20, operation << 8)
    store32(frame + 22, task.mac)
    store16(frame + 26, task.mac >> 32)
    store32(frame + 28, task.ip)
    store32(frame + 32, target)
    store16(frame + 36, target >> 32)
    store32(frame + 38, target_ip)
    send_one(d, task, 60)


@apart(NETDEV, TASK, gives=0)
def send_echo(d: Row, task: Row) -> None:
    """Send the next ICMP echo request, its payload a counting pattern."""
    frame = tx_buffer(d)
    put_addresses(frame, task.peer_mac, task.mac)
    store16(frame + 12, 0x0008)
    total = task.length - 14
    store32(frame + 14, 0x0045 | ((total & 0xFF) << 8 | total >> 8) << 16)
    number = task.asked & 0xFFFF
    swapped = (number & 0xFF) << 8 | number >> 8
    store32(frame + 18, swapped | 0x40 << 16)
    store32(frame + 22, 0x0140)
    store32(frame + 26, task.ip)
    store32(frame + 30, task.peer_ip)
    store16(frame + 24, fold(sum_bytes(frame + 14, 20)) ^ 0xFFFF)
    store32(frame + 34, 8)
    store32(frame + 38, 0x7676 | swapped << 16)
    for i in range(42, task.length):
        store8(frame + i, i - 42 + number)
    store16(frame + 36, fold(sum_bytes(frame + 34, task.length - 34)) ^ 0xFFFF)
    send_one(d, task, task.length)
    task.asked += 1


@kernel
def answer_echo(d: Row, task: Row, frame: int, length: int) -> None:
    """Send an echo request back as a reply."""
    out = tx_buffer(d)
    copy_bytes(out, frame, length)
    put_addresses(out, load64(frame + 6) & 0xFFFFFFFFFFFF, task.mac)
    store32(out + 26, load32(frame + 30))
    store32(out + 30, load32(frame + 26))
    store16(out + 34, 0)
    store16(out + 36, 0)
    end = 14 + ((load8(frame + 16) << 8) | load8(frame + 17))
    store16(out + 36, fold(sum_bytes(out + 34, min(end, length) - 34)) ^ 0xFFFF)
    send_one(d, task, length)


@apart(TRAFFIC, int, NETDEV, int, int, gives=0)
def handle_ping(t: Row, g: int, d: Row, frame: int, length: int) -> None:
    """Be a small network stack: ARP and ICMP echo, both ends."""
    task = t.tasks[g]
    kind = load16(frame + 12)
    if kind == ARP_LOADED and length >= 42 and load32(frame + 38) == task.ip:
        asker = load64(frame + 22) & 0xFFFFFFFFFFFF
        if load16(frame + 20) == 0x0100:
            if call_netdev(d.tx_room, task.netdev, 0) > 0:
                send_arp(d, task, 2, asker, load32(frame + 28))
        elif task.step == 0:
            task.peer_mac = asker
            task.step = 1
    elif kind == 0x0008 and length >= 42 and load32(frame + 30) == task.ip and load8(frame + 23) == 1:
        end = 14 + ((load8(frame + 16) << 8) | load8(frame + 17))
        if end > length or end < 42 or fold(sum_bytes(frame + 34, end - 34)) != 0xFFFF:
            task.corrupt += 1
        elif load8(frame + 34) == 8:
            if call_netdev(d.tx_room, task.netdev, 0) > 0:
                answer_echo(d, task, frame, length)
        elif load8(frame + 34) == 0:
            expected = (task.asked - 1) & 0xFFFF
            if load16(frame + 40) == ((expected & 0xFF) << 8 | expected >> 8) and task.step == 2:
                task.answered += 1
                task.step = 1
            else:
                task.reordered += 1
    else:
        task.foreign += 1


@kernel
def put_tag_back(d: Row, frame: int, length: int, tag: int) -> int:
    """Put a VLAN tag that the device took out into a copy of a frame, 4 bytes longer; return its address."""
    copy_bytes(d.bounce, frame, 12)
    store16(d.bounce + 12, VLAN_LOADED)
    store16(d.bounce + 14, swap16(tag))
    copy_bytes(d.bounce + 16, frame + 12, length - 12)
    return d.bounce


@apart(TRAFFIC, int, NETDEV, int, int, int, gives=0)
def log_frame(t: Row, g: int, d: Row, frame: int, length: int, tag: int) -> None:
    """Log the digest of a frame as it was on the wire."""
    task = t.tasks[g]
    if task.logged < t.room:
        if tag >= 0:
            frame = put_tag_back(d, frame, length, tag)
            length += 4
        store64(t.log + (g * t.room + task.logged) * 8, digest(frame, length))
    task.logged += 1


@kernel
def take_frames(t: Row, g: int, d: Row) -> int:
    """Take the received frames, up to a ring of them: check, log or answer each."""
    task = t.tasks[g]
    taken = 0
    while taken < d.rx_size:
        count = call_netdev(d.rx_take, task.netdev, BATCH)
        now = read_clock(t.clock) if t.stamps and count else 0
        for i in range(count):
            listed = d.taken + i * ENTRY_BYTES
            frame = load64(listed)
            length = load64(listed + 8)
            if length == 0:
                continue
            if task.raw:
                task.corrupt += load16(frame + 12) != task.raw
            elif task.kind == REPLAY:
                log_frame(t, g, d, frame, length, load64(listed + 16) if d.bounce else -1)
            elif task.kind >= PING:
                handle_ping(t, g, d, frame, length)
            else:
                check_generated(t, g, frame, length, now)
        if count == 0:
            break
        call_netdev(d.rx_return, task.netdev, count)
        taken += count
    return taken


@kernel
def poll_guest(t: Row, g: int, d: Row, budget: int) -> tuple[int, int]:
    """Let guest `g` run: take all there is if it polls, and send what its work asks for, up to `budget` frames.

    Returns (received, sent).
    """
    task = t.tasks[g]
    received = 0
    sent = 0
    if d.up == 0:
        return 0, 0
    if d.polling:
        received = take_frames(t, g, d)
        d.empty_polls = 0 if received else d.empty_polls + 1
    if task.kind == GENERATE:
        sent = send_generated(t, g, d, budget)
    elif task.kind == REPLAY:
        sent = send_replayed(t, g, d, budget)
    elif task.kind == PING and task.asked < task.stop and call_netdev(d.tx_room, task.netdev, 0) > 0:
        if task.step == 0 and task.next == 0:
            send_arp(d, task, 1, 0, task.peer_ip)
            task.next = 1
            sent = 1
        elif task.step == 1:
            task.step = 2
            send_echo(d, task)
            sent = 1
    return received, sent
