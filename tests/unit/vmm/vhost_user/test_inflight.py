"""The record of chains under way, and back ends that end in the middle: what was given back is not done again."""

from __future__ import annotations

import array
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.vhostclient import Client
from unit.virtiorig import ether, mac
from unit.vmm.vhost_user.pair import FRAME, Pair, descriptors, pair, q
from virtfn.vmm.vhost_user import Request

R = Request
__all__ = ["pair"]
SIZE = 64
RING_BYTES = 16 + 16 * SIZE + 48  # a multiple of 64


def inflight(nbytes: int = 0, offset: int = 0, rings: int = 2, size: int = SIZE) -> bytes:
    return struct.pack("=QQHH4x", nbytes, offset, rings, size)


def get_record(client: Client, request: bytes) -> tuple[int, int]:
    """Ask for a record; return its bytes and the descriptor that came."""
    client.send(R.GET_INFLIGHT_FD, request)
    raw, ancillary, _, _ = client.sock.recvmsg(12 + 24, socket.CMSG_SPACE(4))
    assert struct.unpack_from("=III", raw) == (R.GET_INFLIGHT_FD, 5, 24)
    ((_, _, fds),) = ancillary
    nbytes, offset, rings, size = struct.unpack_from("=QQHH", raw, 12)
    assert (offset, rings, size) == (0, 2, SIZE)
    return nbytes, array.array("i", fds)[0]


@pytest.fixture
def record(pair: Pair) -> Iterator[tuple[int, int]]:
    pair.a.connect()
    nbytes, fd = get_record(pair.a, inflight())
    yield nbytes, fd
    os.close(fd)


def test_a_record_has_a_part_for_each_ring_and_nothing_in_flight(pair: Pair, record: tuple[int, int]) -> None:
    nbytes, fd = record
    assert nbytes == os.fstat(fd).st_size == 2 * RING_BYTES
    content = os.pread(fd, nbytes, 0)
    for n in (0, 1):
        part = content[n * RING_BYTES : (n + 1) * RING_BYTES]
        assert struct.unpack_from("=QHHHH", part) == (0, 1, SIZE, 0, 0)
        assert not any(part[16:])
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(fd, 0)


def test_the_same_record_is_given_again_and_no_other(pair: Pair, record: tuple[int, int]) -> None:
    _, again = get_record(pair.a, inflight()[:20])  # without padding, as the specification has it
    assert os.fstat(again).st_ino == os.fstat(record[1]).st_ino
    os.close(again)
    pair.a.send(R.GET_INFLIGHT_FD, inflight(size=128))
    assert pair.a.hung_up


@pytest.mark.parametrize(
    "request_", [*(inflight(rings=n) for n in (0, 3)), *(inflight(size=n) for n in (0, 8192)), b"", bytes(23)]
)
def test_a_record_that_cannot_be_is_not_made(pair: Pair, request_: bytes) -> None:
    pair.a.connect()
    begun = descriptors()
    pair.a.send(R.GET_INFLIGHT_FD, request_)
    assert pair.a.hung_up
    assert descriptors() <= begun


def test_with_a_record_rings_begin_at_the_used_index(pair: Pair, record: tuple[int, int]) -> None:
    pair.b.connect()
    pair.b.start()
    pair.b.fill(32)
    assert pair.a.tell(R.SET_INFLIGHT_FD, inflight(record[0]), (record[1],)) == 0
    pair.a.start()
    for _ in range(5):
        pair.a.transmit(FRAME)
    pair.a.turns()
    assert len(pair.b.received()) == 5
    pair.a.sock.close()  # as if the back end had ended: nobody is told where it was
    pair.a.turns()
    pair.a.sock = socket.socket(socket.AF_UNIX)
    pair.a.sock.settimeout(0)
    pair.a.sock.connect(str(pair.servers[0].path))
    pair.a.turns()
    pair.a.connect()
    assert pair.a.tell(R.SET_INFLIGHT_FD, inflight(record[0]), (record[1],)) == 0
    pair.a.start(bases=(0, 0))
    pair.a.transmit(FRAME)
    pair.a.turns()
    assert len(pair.b.received()) == 1, "what was given back is not taken again"


def wrong(content: bytearray, what: str) -> None:
    if what == "in flight":
        content[RING_BYTES + 16 + 16 * 3] = 1
    elif what == "version":
        struct.pack_into("=H", content, 8, 2)
    elif what == "size":
        struct.pack_into("=H", content, 10, SIZE * 2)


@pytest.mark.parametrize(
    ("what", "reason"),
    [("in flight", "inflight-out-of-order"), ("version", "inflight-version"), ("size", "inflight-version")],
)
def test_a_record_of_another_back_end_is_refused(pair: Pair, record: tuple[int, int], what: str, reason: str) -> None:
    content = bytearray(os.pread(record[1], record[0], 0))
    wrong(content, what)
    os.pwrite(record[1], content, 0)
    assert pair.a.tell(R.SET_INFLIGHT_FD, inflight(record[0]), (record[1],)) == 1
    assert pair.servers[0].counters[f"refused:{reason}"] == 1


def test_what_is_no_record_is_refused(pair: Pair, record: tuple[int, int], tmp_path: Path) -> None:
    nbytes, fd = record
    pipe, other = os.pipe()
    file = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    for request, fds, reason in (
        (inflight(nbytes), (pipe,), "inflight-not-a-memory-file"),
        (inflight(nbytes), (file,), "inflight-not-a-memory-file"),
        (inflight(nbytes, 4096), (fd,), "inflight-not-a-memory-file"),
        (inflight(nbytes - 64), (fd,), "inflight-size"),
        (inflight(nbytes, 8), (fd,), "inflight-size"),
        (inflight((1 << 64) - 1, 1 << 62), (fd,), "inflight-size"),
        (inflight(nbytes), (), "wrong-fds"),
        (inflight(nbytes), (fd, fd), "wrong-fds"),
    ):
        assert pair.a.tell(R.SET_INFLIGHT_FD, request, fds) == 1
        assert pair.servers[0].counters[f"refused:{reason}"] >= 1, reason
    for one in (pipe, other, file):
        os.close(one)
    pair.a.start()
    assert pair.a.tell(R.SET_INFLIGHT_FD, inflight(nbytes), (fd,)) == 1
    assert pair.servers[0].counters["refused:ring-runs"] == 1


def test_a_record_is_for_who_agreed_on_records(pair: Pair) -> None:
    pair.a.send(R.SET_PROTOCOL_FEATURES, q(1 << 3))
    assert pair.a.tell(R.SET_INFLIGHT_FD, inflight(), ()) == 1
    pair.a.send(R.GET_INFLIGHT_FD, inflight())
    assert pair.a.hung_up


# A back end that is killed.

BACK_END = """
import sys
from virtfn.vmm.vhost_user import Switch
with Switch() as switch:
    for path in sys.argv[1:]:
        switch.listen(path)
    print("ready", flush=True)
    while True:
        switch()
"""


class Remote(Client):
    """A client of a back end in another process."""

    def __init__(self, path: Path) -> None:
        super().__init__(None, path)  # type: ignore[arg-type]
        self.sock.settimeout(20)
        self.path = path

    def turns(self, count: int = 3) -> None:
        """The other process has its own."""

    def begin(self, *, record: tuple[int, int] | None) -> None:
        self.connect()
        if record is not None:
            assert self.tell(R.SET_INFLIGHT_FD, inflight(record[0]), (record[1],)) == 0
        used = [ring.word(ring.used + 2) for ring in self.rings]
        self.start(bases=used if record is None else (0, 0))

    def again(self) -> None:
        """Connect anew, as often as it takes: the back end may not have seen yet that the old connection is closed."""
        for _ in range(500):
            self.sock.close()
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(20)
            self.sock.connect(str(self.path))
            try:
                self.ask(R.GET_FEATURES)
            except (AssertionError, ConnectionError):
                time.sleep(0.01)
            else:
                return


def start_back_end(paths: list[Path]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", BACK_END, *map(str, paths)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[14:22], "little")


def move(sender: Remote, receiver: Remote, first: int, seconds: float, came: list[int]) -> int:
    """Send numbered frames, as many as the receiver has room for, for a while; return the next number."""
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end:
        sender.rings[1].reap()
        frames = receiver.received()
        came.extend(number_of(frame) for frame in frames)
        receiver.fill(len(frames))
        under_way = number - (max(came) + 1 if came else 0)
        outstanding = (sender.rings[1].index - sender.rings[1].seen) & 0xFFFF
        for _ in range(min(16 - under_way, 32 - outstanding)):
            sender.transmit(ether(mac(1), mac(0), number.to_bytes(8, "little") + bytes(50)))
            number += 1
    return number


@pytest.mark.slow
@pytest.mark.parametrize("with_record", [False, True])
def test_killed_in_the_middle_it_loses_nothing_and_repeats_what_was_not_given_back(
    tmp_path: Path, with_record: bool
) -> None:
    rng = random.Random(5)
    paths = [tmp_path / "a", tmp_path / "b"]
    came: list[int] = []
    kills: list[int] = []
    process = start_back_end(paths)
    sender, receiver = Remote(paths[0]), Remote(paths[1])
    records = [get_record_of(client) if with_record else None for client in (sender, receiver)]
    try:
        for client, record in zip((sender, receiver), records, strict=True):
            client.begin(record=record)
        receiver.fill(48)
        number = 0
        for _ in range(5):
            number = move(sender, receiver, number, 0.3 + rng.random() / 3, came)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append(len(came))
            process = start_back_end(paths)
            # The receiver first: what is for a port that is down is dropped.
            for client, record in reversed([*zip((sender, receiver), records, strict=True)]):
                client.again()
                client.begin(record=record)
        number = move(sender, receiver, number, 0.5, came)
        deadline = time.monotonic() + 20
        while len(set(came)) < number and time.monotonic() < deadline:
            came.extend(number_of(frame) for frame in receiver.received())
    finally:
        process.kill()
        process.wait()
        for client in (sender, receiver):
            client.close()
    assert number > 1000
    assert sorted(set(came)) == list(range(number)), "nothing is lost"
    backward = [i for i in range(1, len(came)) if came[i] <= came[i - 1]]
    assert len(backward) <= len(kills), "repeated only where it was killed"
    assert all(came[i - 1] - came[i] < 64 for i in backward), "and no more than a turn"


def get_record_of(client: Remote) -> tuple[int, int]:
    client.connect()
    record = get_record(client, inflight())
    client.again()
    return record
