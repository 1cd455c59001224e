"""A learning bridge: frames go from port to port, where a port is a front end or the rings of a card's driver.

    front end   take its frame -> where to -> copy into the receiver's chain -> give the chain back    one copy
    rings       frames that the driver lists -> the same;  frames for it are copied into its buffers

To the loops around it, it is a card (`kernels/card.py`): its state begins with a CARD row, and serving it gives each
port a turn, then lets the card beneath move what the rings hold. A port's turn is bounded by work, so none holds up the
others. A receiver without room loses the frame; nobody waits for it. Spec: IEEE 802.1D, 7.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.eth import HEADER_BYTES, VLAN_BYTES, VLAN_LOADED
from virtfn.kernels._jit import Row, kernel, load32, load64, row_at, row_of, store16, store64
from virtfn.kernels.card import CARD, EV_IDLE, EV_INTERRUPT, EV_MORE, call_serve, card_at
from virtfn.kernels.csum import swap16
from virtfn.kernels.netdev import BATCH, ENTRY_BYTES, call_netdev, netdev_at
from virtfn.kernels.ranges import start_call
from virtfn.kernels.virtio.channel import find_kicked, kicked_fd, take_notice
from virtfn.kernels.virtio.macs import MAC, MAC_PLACES, find_port, learn
from virtfn.kernels.virtio.offload import complete, cut_segment
from virtfn.kernels.virtio.pieces import gather, put_piece
from virtfn.kernels.virtio.queue import arm, disarm, let_through, open_queue, show_used
from virtfn.kernels.virtio.receive import DROP_DOWN, DROP_NO_BUFFER, GIVEN, give_frame
from virtfn.kernels.virtio.state import FRAME, LEAD, PIECE_BYTES, channel_at, virtio_at
from virtfn.kernels.virtio.transmit import gather_frame, release_frame, set_frame, take_frame

__all__ = ["BRIDGE", "DROP_NAMES", "FRONT_END", "NOTHING", "PORTS", "RINGS", "bridge_at", "serve_bridge"]

PORTS = 128
NOTHING, FRONT_END, RINGS = range(3)
DROP_NAMES = (
    "given",
    "down",  # the receiver is not up
    "no-buffer",  # it has made no room available
    "too-small",  # its buffer does not hold the frame
    "too-long",  # the card does not send such frames
    "spoof",  # the source is not the port's
    "echo",  # it is for the port that it came by
    "nobody",  # there is no other port
)
DROP_TOO_LONG, DROP_SPOOF, DROP_ECHO, DROP_NOBODY = range(4, 8)

# kind: what it is; address: of its VIRTIO or NETDEV row. mac, check: the only source that it may have, if that is to be
# looked at. learned, most: addresses behind it in the table, and how many there may be. empty: turns without a frame.
# filled, room: buffers of rings that are filled and not shown yet, and that are free. Then what it sent to others, what
# it was given, frames to several that it sent, and copies into rings.
PORT = row_of(
    "kind address mac check learned most empty filled room "
    "tx_frames tx_bytes rx_frames rx_bytes flooded copies copy_bytes"
)

BRIDGE = np.dtype(
    [
        ("card", CARD),
        # ports: how many places are in use; beneath: address of the card that the rings are of, 0 without one; ageing:
        # ps after which an address is forgotten; spin: turns without a frame before a kick is waited for; first: port
        # to begin with; work, stop: done in this turn, and where it ends; kicks: descriptor of the epoll that has the
        # eventfds of front ends in other processes, below 0 without one, events: address of room for what it tells;
        # flooded: frames to several; unlearned: addresses for which there was no place
        ("own", row_of("ports beneath ageing spin first work stop kicks events flooded unlearned")),
        ("frame", FRAME),
        ("ports", PORT, (PORTS,)),
        ("drops", np.int64, (PORTS, len(DROP_NAMES))),
        ("macs", MAC, (MAC_PLACES,)),
    ]
)
bridge_at = row_at(BRIDGE)

_ADDRESS = (1 << 48) - 1
_PATIENCE = 32  # empty polls before a driver goes back to interrupts
_BYTES_LSB = 12  # so many bytes are as much work as a frame, and so many descriptors
_DESCRIPTORS_LSB = 5


@kernel
def serve_bridge(address: int, now: int, budget: int) -> tuple[int, int]:
    """Give each port a turn of `budget` frames, or as much work; then the card beneath. Returns (frames, events).

    address: of a BRIDGE row. now: time in ps.
    """
    start_call()
    b = bridge_at(address)
    own = b.own
    moved = events = 0
    if own.kicks >= 0:
        note_kicks(b)
    for n in range(own.ports):
        if b.ports[n].kind == FRONT_END:
            v = virtio_at(b.ports[n].address)
            if v.own.up:
                let_through(v.rx)
                let_through(v.tx)
    for i in range(own.ports):
        n = (own.first + i) % own.ports
        kind = b.ports[n].kind
        if kind == NOTHING:
            continue
        own.work = 0
        own.stop = budget
        frames, event = serve_front_end(b, n, now) if kind == FRONT_END else serve_rings(b, n, now)
        moved += frames
        events |= event
    own.first = (own.first + 1) % max(own.ports, 1)
    # What was received first: whoever is killed in between repeats frames, but loses none.
    for n in range(own.ports):
        events |= show_received(b, n)
    for n in range(own.ports):
        events |= show_sent(b, n)
    if own.beneath:
        beneath = card_at(own.beneath)
        frames, event = call_serve(beneath.serve, own.beneath, now, budget)
        moved += frames
        events |= event
    return moved, events


@kernel
def note_kicks(b: Row) -> None:
    """Note which front ends of other processes have kicked."""
    for i in range(find_kicked(b.own.kicks, b.own.events)):
        fd = kicked_fd(b.own.events, i)
        for n in range(b.own.ports):
            if b.ports[n].kind == FRONT_END:
                kick = virtio_at(b.ports[n].address).tx.kick
                if kick and channel_at(kick).fd == fd:
                    channel_at(kick).pending = 1
                    channel_at(kick).sent += 1


@kernel
def serve_front_end(b: Row, n: int, now: int) -> tuple[int, int]:
    """Take frames of a front end, and let them go where they are for. Returns (frames, events)."""
    own = b.own
    port = b.ports[n]
    v = virtio_at(port.address)
    q = v.tx
    if not open_queue(v, q):
        return 0, 0
    if q.armed:
        if not take_notice(q.kick):
            return 0, 0
        disarm(v, q)
    f = b.frame
    moved = 0
    while own.work < own.stop:
        found = take_frame(v, f)
        if found <= 0:
            own.work = own.work if found == 0 else own.stop
            break
        if q.enabled:
            own.work += 1 + (f.length >> _BYTES_LSB) + (f.descriptors >> _DESCRIPTORS_LSB)
            forward(b, n, f.head, now)
        else:
            own.work += 1
            b.drops[n, DROP_DOWN] += 1
        release_frame(v, f)
        moved += 1
    if own.work >= own.stop:
        return moved, EV_MORE
    port.empty = 0 if moved else port.empty + 1
    if q.broken or q.kick == 0 or (moved == 0 and port.empty <= own.spin) or (moved and own.spin):
        return moved, 0
    return moved, 0 if arm(v, q) else EV_MORE


@kernel
def serve_rings(b: Row, n: int, now: int) -> tuple[int, int]:
    """Take frames that a card's driver has received, while it polls. Returns (frames, events)."""
    own = b.own
    port = b.ports[n]
    d = netdev_at(port.address)
    if not d.up or not d.polling:
        return 0, 0
    f = b.frame
    moved = 0
    while own.work < own.stop:
        count = call_netdev(d.rx_take, port.address, min(BATCH, own.stop - own.work))
        for i in range(count):
            listed = d.taken + i * ENTRY_BYTES
            length = load64(listed + 8)
            if length >= HEADER_BYTES:
                list_received(f, load64(listed), length, load64(listed + 16) if d.bounce else -1)
                own.work += 1 + (length >> _BYTES_LSB)
                forward(b, n, load64(listed), now)
        if count == 0:
            break
        call_netdev(d.rx_return, port.address, count)
        moved += count
    d.empty_polls = 0 if moved else d.empty_polls + 1
    if own.work >= own.stop:
        return moved, EV_MORE
    return moved, EV_IDLE if d.empty_polls >= _PATIENCE else 0


@kernel
def list_received(f: Row, frame: int, length: int, tag: int) -> None:
    """List a frame that rings received; a VLAN tag that the card took out is put back. tag: -1 if it took none."""
    at = f.list + LEAD * PIECE_BYTES
    if tag < 0:
        put_piece(at, frame, length)
        set_frame(f, LEAD, LEAD + 1, length)
        return
    store16(f.came, VLAN_LOADED)
    store16(f.came + 2, swap16(tag))
    put_piece(at, frame, HEADER_BYTES - 2)
    put_piece(at + PIECE_BYTES, f.came, VLAN_BYTES)
    put_piece(at + 2 * PIECE_BYTES, frame + HEADER_BYTES - 2, length - HEADER_BYTES + 2)
    set_frame(f, LEAD, LEAD + 3, length + VLAN_BYTES)


@kernel
def forward(b: Row, n: int, addresses: int, now: int) -> None:
    """Let the frame under way go where it is for. n: port that it came by. addresses: address of its first 12 bytes."""
    f = b.frame
    port = b.ports[n]
    low = load64(addresses)
    target = low & _ADDRESS
    source = low >> 48 & 0xFFFF | load32(addresses + 8) << 16
    port.tx_frames += 1
    port.tx_bytes += f.length
    if port.check and source != port.mac:
        b.drops[n, DROP_SPOOF] += 1
        return
    if not source & 1 and source:
        learn(b, source, n, now)
    if not target & 1:
        to = find_port(b, target, now)
        if to == n:
            b.drops[n, DROP_ECHO] += 1
            return
        if to >= 0:
            b.card.forwarded += deliver(b, to)
            return
    flood(b, n)


@kernel
def flood(b: Row, n: int) -> None:
    """Give the frame under way to all ports but the one that it came by. Each further copy is work of that port."""
    receivers = 0
    for to in range(b.own.ports):
        if to != n and b.ports[to].kind != NOTHING:
            deliver(b, to)
            receivers += 1
    if receivers == 0:
        b.drops[n, DROP_NOBODY] += 1
        return
    b.own.work += receivers - 1
    b.own.flooded += 1
    b.ports[n].flooded += 1


@kernel
def deliver(b: Row, to: int) -> int:
    """Give the frame under way to a port; return how many it got, as a large one may be cut."""
    port = b.ports[to]
    f = b.frame
    if port.kind == FRONT_END:
        reason, given = give_frame(virtio_at(port.address), f)
        port.rx_frames += given
        port.rx_bytes += f.length if reason == GIVEN else 0
    else:
        reason, given = fill_rings(port, f)
    if reason != GIVEN:
        b.drops[to, reason] += 1
    if given > 1:
        b.own.work += given - 1
    return given


@kernel
def fill_rings(port: Row, f: Row) -> tuple[int, int]:
    """Copy a frame, or what it is cut into, into buffers of a card's driver. Returns (GIVEN or why not, frames)."""
    d = netdev_at(port.address)
    if not d.up:
        return DROP_DOWN, 0
    if not f.gso:
        reason = fill_buffer(port, d, f, f.list + f.first * PIECE_BYTES, f.length, f.partial)
        return reason, 1 if reason == GIVEN else 0
    gather_frame(f)
    given = 0
    offset = f.headers
    while offset < f.length:
        total = cut_segment(f, offset, False)
        reason = fill_buffer(port, d, f, f.cut + PIECE_BYTES, total, 0)
        if reason != GIVEN:
            return reason, given
        given += 1
        offset += f.mss
    return GIVEN, given


@kernel
def fill_buffer(port: Row, d: Row, f: Row, at: int, length: int, partial: int) -> int:
    """Copy a frame into the next buffer of a card's driver. at: of its first piece. partial: its checksum is open.

    Returns GIVEN or why not.
    """
    if length > d.longest:
        return DROP_TOO_LONG
    if port.filled >= port.room:
        port.room = call_netdev(d.tx_room, port.address, 0)
        if port.filled >= port.room:
            return DROP_NO_BUFFER
    slot = d.tx_tail + port.filled
    if slot >= d.tx_size:
        slot -= d.tx_size
    buffer = d.tx_buffers + slot * d.buffer_bytes
    gather(buffer, at, length)
    if partial:
        complete(buffer, f.l4, f.sum_at, length)
    store64(d.tx_lengths + slot * 8, length)
    port.filled += 1
    port.rx_frames += 1
    port.rx_bytes += length
    port.copies += 1
    port.copy_bytes += length
    return GIVEN


@kernel
def show_received(b: Row, n: int) -> int:
    """Show a port what the others have sent it in this turn; return events."""
    port = b.ports[n]
    if port.kind == FRONT_END:
        v = virtio_at(port.address)
        return EV_INTERRUPT if v.own.up and v.rx.size and show_used(v, v.rx) else 0
    if port.kind == RINGS:
        if port.filled:
            call_netdev(netdev_at(port.address).tx_send, port.address, port.filled)
        port.filled = port.room = 0
    return 0


@kernel
def show_sent(b: Row, n: int) -> int:
    """Show a front end which of its frames have gone; return events."""
    port = b.ports[n]
    if port.kind != FRONT_END:
        return 0
    v = virtio_at(port.address)
    return EV_INTERRUPT if v.own.up and v.tx.size and show_used(v, v.tx) else 0
