"""The vhost-user server by its messages: what a good client gets, and that the others go on."""

from __future__ import annotations

import os
import socket
import struct
import time

from unit.vhostclient import SIZE, UVA, Client, Shared
from unit.virtiorig import NEXT
from unit.vmm.vhost_user.pair import BACK, FRAME, Pair, ii, pair, q
from virtfn.devices.virtio import OFFERED
from virtfn.vmm.vhost_user import Request

R = Request
__all__ = ["pair"]


def test_frames_go_from_client_to_client_and_calls_come(pair: Pair) -> None:
    pair.begin()
    assert pair.b.called(0) > 0
    assert pair.a.called(1) > 0
    counters = pair.servers[0].back.counters()
    assert (counters["tx_frames"], counters["rx_frames"]) == (1, 1)
    assert counters["tx_kicks"] >= 1
    assert pair.servers[0].back.errors() == {}


def test_frames_move_while_it_rests(pair: Pair) -> None:
    pair.begin()
    pair.a.transmit(FRAME)
    pair.switch.rest(10**9)
    assert pair.b.received() == [FRAME]


def test_nothing_moves_without_a_kick_but_where_there_is_none(pair: Pair) -> None:
    pair.begin()
    pair.a.transmit(FRAME, kick=False)
    pair.a.turns()
    assert pair.b.received() == []
    assert pair.switch.due() is None
    assert pair.a.fd_message(R.SET_VRING_KICK, 1, -1) == 0
    assert pair.switch.due() is not None
    pair.a.turns()
    assert pair.b.received() == [FRAME]
    pair.a.transmit(FRAME, kick=False)
    pair.a.turns()
    assert pair.b.received() == [FRAME]


def test_a_ring_stops_and_goes_on_where_it_was(pair: Pair) -> None:
    pair.begin()
    bases = pair.a.stop()
    assert bases == [1, 1]
    pair.a.transmit(FRAME)
    pair.a.turns()
    assert pair.b.received() == []
    pair.b.transmit(BACK)
    pair.b.turns()
    assert pair.a.received() == []
    assert pair.a.stop() == bases, "as often as it is asked"
    pair.a.start(bases=bases)
    pair.a.turns()
    assert pair.b.received() == [FRAME]
    pair.b.fill(4)
    pair.exchange()


def test_a_disabled_ring_is_drained_and_not_fed(pair: Pair) -> None:
    pair.begin()
    for n in (0, 1):
        assert pair.a.tell(R.SET_VRING_ENABLE, ii(n, 0)) == 0
    pair.a.transmit(FRAME)
    pair.b.transmit(BACK)
    pair.a.turns()
    assert (pair.a.received(), pair.b.received()) == ([], [])
    assert len(pair.a.rings[1].reap()) == 2
    for n in (0, 1):
        assert pair.a.tell(R.SET_VRING_ENABLE, ii(n, 1)) == 0
    pair.exchange()


def test_a_client_without_protocol_features_has_its_rings_enabled(pair: Pair) -> None:
    pair.b.connect()
    pair.b.start()
    pair.b.fill(4)
    a = pair.a
    a.send(R.SET_FEATURES, q(OFFERED))
    a.send(R.SET_MEM_TABLE, a.table(), (a.memory.fd,))
    for n, ring in enumerate(a.rings):
        a.send(R.SET_VRING_NUM, ii(n, 64))
        a.send(R.SET_VRING_ADDR, struct.pack("=IIQQQQ", n, 0, UVA + ring.desc, UVA + ring.used, UVA + ring.avail, 0))
        a.send(R.SET_VRING_KICK, q(n), (a.kicks[n],))
    a.transmit(FRAME)
    a.turns()
    assert pair.b.received() == [FRAME]


def test_memory_by_slots(pair: Pair) -> None:
    for client in (pair.a, pair.b):
        client.connect()
        client.start()
        client.fill(8)
    assert pair.a.ask(R.GET_MAX_MEM_SLOTS) == 64
    more = Shared(8192)
    slot = struct.pack("=QQQQQ", 0, 0x1000_0000, 4096, UVA + (1 << 32), 4096)
    assert pair.a.tell(R.ADD_MEM_REG, slot, (more.fd,)) == 0
    more.write(4096, bytes(12) + FRAME)
    pair.a.rings[1].offer(pair.a.rings[1].chain([(0x1000_0000, 12 + len(FRAME))]))
    os.eventfd_write(pair.a.kicks[1], 1)
    pair.a.turns()
    assert pair.b.received() == [FRAME]
    assert pair.a.tell(R.ADD_MEM_REG, slot, (more.fd,)) == 1, "it is there"
    assert pair.a.tell(R.REM_MEM_REG, slot) == 0
    assert pair.a.tell(R.REM_MEM_REG, slot) == 1, "it is gone"
    pair.a.rings[1].offer(pair.a.rings[1].chain([(0x1000_0000, 12 + len(FRAME))]))
    os.eventfd_write(pair.a.kicks[1], 1)
    pair.a.turns()
    assert pair.b.received() == []
    assert pair.servers[0].back.errors() == {"unmapped": 1}
    more.close()


def test_memory_may_be_replaced_while_rings_run(pair: Pair) -> None:
    pair.begin()
    before = pair.a.memory
    pair.a.memory = Shared()
    pair.a.memory.bytes[:] = before.bytes[:]
    for ring in pair.a.rings:
        ring.memory = pair.a.memory
    assert pair.a.tell(R.SET_MEM_TABLE, pair.a.table(), (pair.a.memory.fd,)) == 0
    before.bytes[:] = bytes(SIZE)
    pair.exchange()
    before.close()


def test_a_ring_that_is_nowhere_any_more_is_broken_and_comes_back(pair: Pair) -> None:
    pair.begin()
    assert (
        pair.a.tell(R.SET_MEM_TABLE, pair.a.table((0x8000, SIZE - 0x8000, UVA + 0x8000, 0x8000)), (pair.a.memory.fd,))
        == 0
    )
    pair.a.transmit(FRAME)
    pair.a.turns()
    assert pair.b.received() == []
    assert pair.servers[0].back.errors() == {"ring": 2}
    bases = pair.a.stop()
    pair.a.start(bases=bases)
    pair.a.turns()
    assert pair.b.received() == [FRAME]


def test_a_reset_of_the_device_stops_the_rings(pair: Pair) -> None:
    pair.begin()
    assert pair.a.tell(R.RESET_DEVICE) == 0
    pair.a.transmit(FRAME)
    pair.a.turns()
    assert pair.b.received() == []
    assert pair.a.tell(R.SET_STATUS, q(0xB)) == 0
    assert pair.a.ask(R.GET_STATUS) == 0xB


def test_a_driver_of_old_is_not_served_and_not_hung_up_on(pair: Pair) -> None:
    pair.b.connect()
    pair.b.start()
    pair.b.fill(4)
    pair.a.connect()
    pair.a.start(features=OFFERED & ~(1 << 32))
    pair.a.transmit(FRAME)
    pair.a.turns()
    assert pair.b.received() == []
    assert pair.servers[0].counters["legacy-driver"] == 2
    pair.a.stop()
    pair.a.start()
    pair.a.turns()
    assert pair.b.received() == [FRAME]


def test_a_ring_that_breaks_says_so_by_its_err_and_messages_go_on(pair: Pair) -> None:
    pair.begin()
    pair.a.rings[1].descriptor(5, 0x8000, 20, NEXT, 99)
    pair.a.rings[1].offer(5)
    os.eventfd_write(pair.a.kicks[1], 1)
    pair.a.turns()
    assert os.eventfd_read(pair.a.errs[1]) == 1
    assert pair.servers[0].back.errors() == {"next": 1}
    assert pair.a.ask(R.GET_FEATURES) & OFFERED == OFFERED
    assert pair.a.stop() == [1, 1]


def test_a_client_comes_again_and_another_is_turned_away(pair: Pair) -> None:
    pair.begin()
    other = Client(pair.switch, pair.servers[0].path)
    assert other.hung_up
    other.close()
    assert pair.servers[0].counters["turned-away"] == 1
    pair.a.close()
    pair.b.turns()
    assert not pair.servers[0].connected
    pair.a = Client(pair.switch, pair.servers[0].path)
    pair.a.connect()
    pair.a.start()
    pair.a.fill(4)
    pair.b.fill(4)
    pair.exchange()


def test_who_has_hung_up_at_the_door_keeps_nobody_out(pair: Pair) -> None:
    pair.a.close()
    pair.b.turns()
    for _ in range(3):
        gone = socket.socket(socket.AF_UNIX)
        gone.connect(str(pair.servers[0].path))
        gone.close()
    pair.a = Client(pair.switch, pair.servers[0].path)
    pair.a.turns(10)
    assert not pair.a.hung_up
    assert "turned-away" not in pair.servers[0].counters


def test_a_full_eventfd_that_waits_holds_nobody_up(pair: Pair) -> None:
    pair.begin()
    for client, n in ((pair.b, 0), (pair.a, 1)):
        client.called(n)
        os.eventfd_write(client.calls[n], (1 << 64) - 2)
        os.set_blocking(client.calls[n], True)
    begun = time.monotonic()
    pair.b.rings[0].set_event(pair.b.rings[0].seen)
    for _ in range(200):
        pair.a.transmit(FRAME)
        pair.a.rings[1].set_event(pair.a.rings[1].index - 1)
        pair.a.turns(1)
        pair.b.received()
        pair.b.fill(1)
    assert time.monotonic() - begun < 5
    os.set_blocking(pair.a.kicks[1], True)
    pair.a.turns()
    assert time.monotonic() - begun < 5
