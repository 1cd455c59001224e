"""Two clients of one switch, for tests of the vhost-user server."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.vhostclient import Client
from unit.virtiorig import ether, mac
from virtfn.vmm.vhost_user import Limits, Switch

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
