"""Messages that cannot be: refused, counted, and nothing left of them."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import pytest

from unit.vhostclient import SIZE, UVA, Client, Shared
from unit.vmm.vhost_user.pair import FRAME, Pair, addresses, descriptors, ii, pair, q, table
from virtfn.devices.virtio import OFFERED
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.vhost_user import OFFERED_PROTOCOL, Limits, Request, Switch

R = Request
__all__ = ["pair"]


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
    assert OFFERED_PROTOCOL == 1 << 3 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16
