"""The vhost-user server by its messages: what a good client gets, what a bad one, and that the others go on."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.vhostclient import SIZE, UVA, Client, Shared
from unit.virtiorig import NEXT, ether, mac
from virtfn.devices.virtio import OFFERED
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vhost_user import OFFERED_PROTOCOL, Limits, Request, Switch

R = Request
FRAME = ether(mac(1), mac(0), bytes(range(100)))
BACK = ether(mac(0), mac(1), bytes(range(50)))


def q(value: int) -> bytes:
    return struct.pack("=Q", value)


def ii(*values: int) -> bytes:
    return struct.pack("=II", *values)


def table(*regions: tuple[int, int, int, int]) -> bytes:
    return ii(len(regions), 0) + b"".join(struct.pack("=QQQQ", *region) for region in regions)


def addresses(desc: int, used: int, avail: int) -> bytes:
    return struct.pack("=IIQQQQ", 0, 0, desc, used, avail, 0)


class Pair:
    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.switch = Switch()
        self.servers = [self.switch.listen(folder / f"{n}.sock", limits=limits) for n in (0, 1)]
        self.a, self.b = (Client(self.switch, server.path) for server in self.servers)

    def begin(self) -> Pair:
        for client in (self.a, self.b):
            client.connect()
            client.start()
            client.fill(32)
        self.exchange()
        return self

    def exchange(self) -> None:
        """See that frames go both ways."""
        self.a.transmit(FRAME)
        self.a.turns(1)
        self.b.transmit(BACK)
        self.a.turns(1)
        assert FRAME in self.b.received()
        assert BACK in self.a.received()

    def close(self) -> None:
        for client in (self.a, self.b):
            client.close()
        self.switch.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Good clients.


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
    assert pair.a.fd_message(R.SET_VRING_KICK, 1, -1) == 0
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


# Bad messages.

BAD = {
    "unknown": (99, b"", 0, "unknown-request"),
    "in-band call": (4000000000, b"", 0, "unknown-request"),
    "log base": (R.SET_LOG_BASE, bytes(16), 1, "unknown-request"),
    "log fd": (R.SET_LOG_FD, b"", 1, "unknown-request"),
    "feature not offered": (R.SET_FEATURES, q(1 << 34), 0, "features-not-offered"),
    "no feature": (R.SET_FEATURES, b"", 0, "wrong-size"),
    "protocol feature not offered": (R.SET_PROTOCOL_FEATURES, q(1), 0, "features-not-offered"),
    "long owner": (R.SET_OWNER, b"x", 0, "wrong-size"),
    "table of nothing": (R.SET_MEM_TABLE, b"", 0, "wrong-size"),
    "table too short": (R.SET_MEM_TABLE, ii(2, 0) + bytes(32), 2, "wrong-size"),
    "table that counts far": (R.SET_MEM_TABLE, ii((1 << 32) - 1, 0), 0, "wrong-size"),
    "table without files": (R.SET_MEM_TABLE, table((0, 4096, UVA, 0)), 0, "wrong-fds"),
    "region of no size": (R.SET_MEM_TABLE, table((0, 0, UVA, 0)), 1, "region-size"),
    "region of 2**63": (R.SET_MEM_TABLE, table((0, 1 << 63, UVA, 0)), 1, "region-size"),
    "region that wraps": (R.SET_MEM_TABLE, table(((1 << 64) - 4096, 8192, UVA, 0)), 1, "region-size"),
    "region beyond its file": (R.SET_MEM_TABLE, table((0, SIZE + 4096, UVA, 0)), 1, "map-beyond-file"),
    "offset beyond its file": (R.SET_MEM_TABLE, table((0, 4096, UVA, SIZE)), 1, "map-beyond-file"),
    "offset that wraps": (R.SET_MEM_TABLE, table((0, 4096, UVA, (1 << 64) - 4096)), 1, "region-size"),
    "odd offset": (R.SET_MEM_TABLE, table((0, 4096, UVA, 1)), 1, "region-not-whole-pages"),
    "regions that overlap": (R.SET_MEM_TABLE, table((0, 8192, UVA, 0), (4096, 4096, UVA, 0)), 2, "region-overlaps"),
    "slot without file": (R.ADD_MEM_REG, struct.pack("=QQQQQ", 0, 0, 4096, UVA, 0), 0, "wrong-fds"),
    "slot of wrong size": (R.ADD_MEM_REG, bytes(32), 1, "wrong-size"),
    "slot that is not there": (R.REM_MEM_REG, struct.pack("=QQQQQ", 0, 7 << 30, 4096, UVA, 0), 0, "no-such-region"),
    **{f"size {n}": (R.SET_VRING_NUM, ii(0, n), 0, "ring-size") for n in (0, 3, 65, 8192, 1 << 16, (1 << 32) - 1)},
    **{f"ring {n}": (R.SET_VRING_NUM, ii(n, 64), 0, "no-such-ring") for n in (2, 255, 256, (1 << 32) - 1)},
    **{f"base of ring {n}": (R.GET_VRING_BASE, ii(n, 0), 0, "no-such-ring") for n in (2, (1 << 32) - 1)},
    **{f"fd of ring {n}": (R.SET_VRING_CALL, q(n), 1, "no-such-ring") for n in (2, 255)},
    "base": (R.SET_VRING_BASE, ii(0, 1 << 16), 0, "ring-base"),
    "addresses at 0": (R.SET_VRING_ADDR, addresses(0, 0, 0), 0, "ring-alignment"),
    "addresses not aligned": (R.SET_VRING_ADDR, addresses(UVA + 8, UVA, UVA), 0, "ring-alignment"),
    "logged ring": (R.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 1, UVA, UVA, UVA, 0), 0, "ring-flags"),
    "kick without fd": (R.SET_VRING_KICK, q(0), 0, "wrong-fds"),
    "call with two fds": (R.SET_VRING_CALL, q(0), 2, "wrong-fds"),
    "no call with an fd": (R.SET_VRING_CALL, q(0x100), 1, "wrong-fds"),
    "call that is a file": (R.SET_VRING_CALL, q(0), 1, "not-an-eventfd"),
    "fd with more bits": (R.SET_VRING_CALL, q(0x200), 1, "ring-fd"),
    "half enabled": (R.SET_VRING_ENABLE, ii(0, 2), 0, "ring-enable"),
    "status": (R.SET_STATUS, q(256), 0, "status"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_message_that_cannot_be_is_refused_and_changes_nothing(pair: Pair, name: str) -> None:
    request, payload, files, reason = BAD[name]
    pair.b.connect()
    pair.b.start()
    pair.b.fill(4)
    pair.a.connect()
    begun = descriptors()
    for _ in range(5):
        pair.a.send(request, payload, [pair.a.memory.fd] * files, 9)
        if request == R.GET_VRING_BASE:
            break
        assert pair.a.receive()[1] == q(1)
    counters = pair.servers[0].counters
    assert counters[f"refused:{reason}"] >= 1
    if request == R.GET_VRING_BASE:
        assert pair.a.hung_up
        return
    assert pair.a.ask(R.GET_FEATURES)
    deadline = time.monotonic() + 5
    while descriptors() > begun and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() <= begun
    pair.a.start()
    pair.a.transmit(FRAME)
    pair.a.turns()
    assert pair.b.received() == [FRAME]
    pair.a.send(request, payload, [pair.a.memory.fd] * files)
    assert pair.a.hung_up, "who does not ask is hung up on"


@pytest.mark.parametrize("words", [(1, 0, 0), (1, 2, 0), (1, 5, 0), (1, 1, 0xFFFFFFFF), (1, 1, 5000)])
def test_a_header_that_cannot_be_ends_the_connection(pair: Pair, words: tuple[int, int, int]) -> None:
    pair.a.sock.send(struct.pack("=III", *words))
    assert pair.a.hung_up
    assert not pair.servers[0].connected


def test_a_message_byte_by_byte_is_one(pair: Pair) -> None:
    for byte in struct.pack("=III", R.GET_FEATURES, 1, 0):
        pair.a.sock.send(bytes([byte]))
        pair.a.turns(1)
    assert pair.a.receive()[0] == R.GET_FEATURES


@pytest.mark.parametrize("seals", [0, 1])
def test_memory_that_could_shrink_is_refused_with_a_reason(pair: Pair, seals: int) -> None:
    pair.a.connect()
    memory = Shared(seals=seals)
    assert pair.a.tell(R.SET_MEM_TABLE, pair.a.table(), (memory.fd,)) == 1
    assert "F_SEAL_SHRINK" in pair.servers[0].last_refusal
    memory.close()


def test_files_and_bytes_of_memory_are_bounded(tmp_path: Path) -> None:
    made = Pair(tmp_path, Limits(max_bytes=SIZE + 8192, max_files=2))
    made.a.connect()
    assert made.a.tell(R.SET_MEM_TABLE, made.a.table(), (made.a.memory.fd,)) == 0
    reasons = []
    for i, size in enumerate((4096, 8192, 4096)):
        memory = Shared(size)
        slot = struct.pack("=QQQQQ", 0, (i + 1) << 30, 4096, UVA + (1 << 40), 0)
        reasons.append(made.a.tell(R.ADD_MEM_REG, slot, (memory.fd,)))
        memory.close()
    assert reasons == [0, 1, 1]
    assert {"refused:too-much-memory", "refused:too-many-files"} <= made.servers[0].counters.keys()
    made.close()


def test_a_ring_that_runs_is_not_changed(pair: Pair) -> None:
    pair.begin()
    for request, payload in (
        (R.SET_VRING_NUM, ii(1, 128)),
        (R.SET_VRING_BASE, ii(1, 7)),
        (R.SET_VRING_ADDR, struct.pack("=IIQQQQ", 1, 0, UVA, UVA, UVA, 0)),
    ):
        assert pair.a.tell(request, payload) == 1
    pair.exchange()


def test_nothing_stays_behind_however_often_a_client_does_all_of_it(pair: Pair) -> None:
    begun = descriptors()
    for _ in range(40):
        pair.a.connect()
        pair.a.start()
        for request in (R.SET_VRING_CALL, R.SET_VRING_KICK, R.SET_VRING_ERR):
            for n in (0, 1):
                pair.a.fd_message(request, n, pair.a.calls[n])
        pair.a.tell(R.SET_OWNER, b"", [pair.a.memory.fd] * 8)
        pair.a.close()
        pair.a.switch.turn(0)
        pair.a = Client(pair.switch, pair.servers[0].path)
    deadline = time.monotonic() + 5
    while descriptors() > begun and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() <= begun


def test_too_many_descriptors_end_the_connection(pair: Pair) -> None:
    pair.a.send(R.SET_OWNER, b"", [pair.a.memory.fd] * 9)
    assert pair.a.hung_up
    assert pair.servers[0].counters["dropped:too-many-fds"] == 1


def test_a_client_that_takes_no_answers_is_not_read_on(pair: Pair) -> None:
    pair.b.connect()
    stuck = 0
    while stuck < 3:
        try:
            pair.a.sock.send(struct.pack("=III", R.GET_FEATURES, 1, 0))
        except BlockingIOError:
            pair.a.turns(200)
            stuck += 1
    session = pair.servers[0]._session
    assert session is not None
    assert session._connection.paused
    assert session._connection.backlog <= Limits().max_output
    assert pair.b.ask(R.GET_FEATURES)
    while pair.a.sock.recv(1 << 16, socket.MSG_DONTWAIT):
        pair.a.turns(20)
        if not session._connection.backlog:
            break
    assert not session._connection.paused


def test_a_ring_does_not_start_before_it_is_set_up(pair: Pair) -> None:
    pair.a.connect()
    pair.a.send(R.SET_FEATURES, q(OFFERED | 1 << 30))
    assert pair.a.fd_message(R.SET_VRING_KICK, 0, -1) == 1
    pair.a.send(R.SET_VRING_NUM, ii(0, 64))
    pair.a.send(R.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, UVA, UVA + 0x800, UVA + 0x400, 0))
    assert pair.a.fd_message(R.SET_VRING_KICK, 0, pair.a.kicks[0]) == 1
    assert pair.servers[0].counters["refused:ring-nowhere"] == 1
    assert not pair.servers[0].back.up


def test_paths_that_cannot_be_are_told(tmp_path: Path) -> None:
    with Switch() as switch:
        switch.listen(tmp_path / "a.sock")
        with pytest.raises(VirtfnError):
            switch.listen(tmp_path / "a.sock")
        with pytest.raises(VirtfnError):
            switch.listen(tmp_path / "none" / "a.sock")
        assert len(switch.servers) == 1
    assert not (tmp_path / "a.sock").exists()


def test_what_is_offered_is_what_there_is() -> None:
    assert OFFERED == 0x1_3000_BB83 & ~(1 << 5)
    assert OFFERED_PROTOCOL == 1 << 3 | 1 << 13 | 1 << 15 | 1 << 16
