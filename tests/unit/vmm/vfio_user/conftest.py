from __future__ import annotations

import pytest

from unit.vmm.vfio_user.peer import Board, Peer, open_fds, settle
from virtfn.vmm.vfio_user import Limits, MmapMapper, Server


@pytest.fixture
def board():
    made = Board()
    yield made
    made.close()


@pytest.fixture
def mapper():
    return MmapMapper(max_bytes=64 << 20)


@pytest.fixture
def server(tmp_path, board, mapper):
    before = open_fds()
    with Server(tmp_path / "socket", board, mapper=mapper, limits=Limits(max_dma_maps=8)) as made:
        yield made
    assert open_fds() == before, "every descriptor is closed"


@pytest.fixture
def peer(server):
    with Peer(server) as made:
        yield made
    settle(server)
