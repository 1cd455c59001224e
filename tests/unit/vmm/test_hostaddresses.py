"""A guest that names its memory as the host does."""

from __future__ import annotations

import random

import pytest

from virtfn.machine.memory import CHUNK, GuestMemory, HostMemory, view_bytes
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.hostaddresses import HostAddresses, host_address


@pytest.fixture
def guest():
    host = HostMemory(8 << 20)
    memory = GuestMemory(host, 4 << 20, random.Random(3))
    yield memory
    memory.close()
    host.close()


def test_an_allocation_is_where_it_says_and_contiguous(guest):
    dma = HostAddresses(guest)
    taken = [dma.alloc(size) for size in (4096, 700_000, 1, 1 << 20, 300_000)]
    for address, hva in taken:
        assert host_address(guest, hva) == address
    address, hva = taken[1]
    view_bytes(hva, 700_000)[:] = 7
    assert (view_bytes(address, 700_000) == 7).all(), "to its last byte"
    for address, _ in taken:
        dma.free(address)
    assert dma.alloc(CHUNK)[0] in guest.pieces


def test_what_no_piece_holds_and_what_is_not_there_is_refused(guest):
    dma = HostAddresses(guest)
    with pytest.raises(VirtfnError, match="contiguous"):
        dma.alloc(CHUNK + 1)
    with pytest.raises(VirtfnError, match="nothing is allocated"):
        dma.free(guest.pieces[0])
    with pytest.raises(VirtfnError, match="cannot be allocated"):
        dma.alloc(0)
    address, _ = dma.alloc(4096)
    dma.free(address)
    with pytest.raises(VirtfnError):
        dma.free(address)
