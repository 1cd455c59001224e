"""Messages of anything, in any order, with any descriptors, and rings of anything; a neighbour notices nothing."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
from pathlib import Path

import pytest

from unit.vhostclient import SIZE, UVA, Client, Shared
from unit.virtiorig import ether, mac
from virtfn.devices.virtio import OFFERED
from virtfn.kernels.stray import CHECKED
from virtfn.vmm.vhost_user import Request, Switch

NUMBERS = [0, 1, 2, 3, 63, 64, 255, 256, 4096, 8192, 1 << 16, SIZE - 4096, SIZE, UVA, UVA + 0x4000, UVA + SIZE - 16,
           1 << 32, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096]  # fmt: skip


def payload(rng: random.Random, request: int, client: Client) -> tuple[bytes, list[int]]:
    """Make a payload that is nearly right."""

    def number(*usual: int) -> int:
        return rng.choice(usual) if usual and rng.random() < 0.8 else rng.choice(NUMBERS)

    def low(*usual: int) -> int:
        return number(*usual) & 0xFFFFFFFF

    n = low(0, 1)
    fds: list[int] = []
    match request:
        case Request.SET_FEATURES:
            body = struct.pack("=Q", number(OFFERED | 1 << 30, OFFERED, 1 << 32, OFFERED & rng.getrandbits(64)))
        case Request.SET_PROTOCOL_FEATURES:
            body = struct.pack("=Q", number(0x1B008, 8))
        case Request.SET_MEM_TABLE:
            count = rng.choice([0, 1, 1, 2, 3, 8, 9])
            body = struct.pack("=II", low(count), 0)
            for i in range(count):
                body += struct.pack("=QQQQ", number(i << 20), number(SIZE, 4096), number(UVA + (i << 20)), number(0))
            fds = [client.memory.fd] * rng.choice([count, count, count, 0, 1])
        case Request.ADD_MEM_REG | Request.REM_MEM_REG:
            body = struct.pack(
                "=QQQQQ", 0, number(0, 1 << 20), number(SIZE, 4096), number(UVA, UVA + SIZE), number(0, 4096)
            )
            fds = [client.memory.fd] * rng.choice([0, 1, 1, 2])
        case Request.SET_VRING_ADDR:
            ring = client.rings[n & 1]
            where = (number(UVA + ring.desc), number(UVA + ring.used), number(UVA + ring.avail), number(0))
            body = struct.pack("=IIQQQQ", n, low(0), *where)
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            body = struct.pack("=Q", number(0, 1, 0x100, 0x101))
            fds = [rng.choice([*client.kicks, *client.calls, client.memory.fd])] * rng.choice([0, 1, 1, 1, 2])
        case Request.SET_VRING_NUM | Request.SET_VRING_BASE | Request.SET_VRING_ENABLE | Request.GET_VRING_BASE:
            body = struct.pack("=II", n, low(0, 1, 64, 64, 64))
        case Request.GET_INFLIGHT_FD | Request.SET_INFLIGHT_FD:
            shape = (low(2) & 0xFFFF, low(64) & 0xFFFF)
            body = struct.pack("=QQHH4x", number(SIZE, 1 << 12), number(0, 4096), *shape)
            fds = [client.memory.fd] * rng.choice([0, 1, 1])
        case Request.SET_STATUS:
            body = struct.pack("=Q", number(0, 15))
        case _:
            body = b""
    if rng.random() < 0.05:
        body = rng.choice([body[:-1], body + b"\0", rng.randbytes(rng.randint(0, 60)), b""])
    if rng.random() < 0.05:
        fds += [client.memory.fd] * rng.randint(1, 8)
    return body, fds[:12]


def disturb(rng: random.Random, client: Client) -> None:
    """Write anything into the rings."""
    for _ in range(8):
        ring = rng.choice(client.rings)
        row = (
            rng.choice([0x8000, SIZE - 10, SIZE, rng.getrandbits(64)]),
            rng.choice([0, 12, 26, 100, 1 << 31]),
            rng.getrandbits(3),
        )
        ring.descriptor(rng.randrange(64), *row, rng.choice([0, 1, rng.randrange(1 << 16)]))
        if rng.random() < 0.5:
            ring.offer(rng.choice([*range(64), 70]))
    os.eventfd_write(rng.choice(client.kicks), 1)


@pytest.mark.parametrize("seed", range(4 if CHECKED else 10))
def test_whatever_a_client_says_its_neighbours_go_on(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with Switch() as switch:
        servers = [switch.listen(tmp_path / f"{n}.sock") for n in range(3)]
        good = [Client(switch, server.path) for server in servers[:2]]
        for client in good:
            client.connect()
            client.start()
        frame = ether(mac(1), mac(0), b"still here")
        begun = len(os.listdir("/proc/self/fd"))
        names = list(Request)
        sessions = 0
        for _ in range(25 if CHECKED else 60):
            bad = Client(switch, servers[2].path)
            sessions += 1
            if rng.random() < 0.7:
                bad.connect()
                if rng.random() < 0.7:
                    bad.start()
            for _ in range(rng.randint(1, 60)):
                request = int(rng.choice(names)) if rng.random() < 0.97 else rng.randrange(1 << 32)
                body, fds = payload(rng, request, bad)
                try:
                    bad.send(request, body, fds, rng.choice([1, 1, 9, 9, 9, rng.randrange(16)]))
                except OSError:
                    break
                if rng.random() < 0.3:
                    disturb(rng, bad)
                with contextlib.suppress(OSError):
                    bad.sock.recv(1 << 16)
            bad.close()
            switch.turn(0)
            good[1].fill(1 - len(good[1].buffers) if len(good[1].buffers) < 1 else 0)
            good[0].transmit(frame)
            switch.turn(0)
            assert frame in good[1].received()
        assert not servers[2].connected
        assert servers[2].counters["connected"] == sessions
        assert not any(server.back.errors() for server in servers[:2])
        deadline = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) > begun and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= begun
        for client in good:
            client.close()


def test_a_file_that_shrinks_is_never_mapped(tmp_path: Path) -> None:
    with Switch() as switch:
        server = switch.listen(tmp_path / "a.sock")
        client = Client(switch, server.path)
        client.connect()
        memory = Shared(seals=0)
        assert client.tell(Request.SET_MEM_TABLE, client.table(), (memory.fd,)) == 1
        os.ftruncate(memory.fd, 0)
        switch.turn(0)
        memory.bytes.close()
        os.close(memory.fd)
        client.close()
