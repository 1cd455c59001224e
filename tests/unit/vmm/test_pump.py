"""The pump rests with whatever is there to wait for."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from types import SimpleNamespace

import pytest

from virtfn.machine.clock import S_PS, WallClock
from virtfn.vmm.host import Host
from virtfn.vmm.pump import Pump, _readable
from virtfn.vmm.vfio_user import Server, VfioUserDevice


class Nothing(VfioUserDevice):
    """A device without registers."""

    def regions(self):
        return {}

    def irqs(self):
        return {}

    def region_read(self, region, offset, count):
        return bytes(count)

    def region_write(self, region, offset, data):
        pass


@pytest.fixture
def host():
    made = Host(WallClock(), 2 << 20)
    yield made
    made.close()


def test_a_descriptor_of_any_number_is_waited_for():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 2048:
        pytest.skip("not run: this machine allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    ours, theirs = socket.socketpair()
    high = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, 1500)
    try:
        assert not _readable([high], 0.0002)
        theirs.send(b"x")
        assert _readable([high], 0.5)
        theirs.close()
        assert _readable([high, high], 0.5)
    finally:
        os.close(high)
        ours.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_short_wait_is_short():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        clock = WallClock()
        began = clock.now()
        for _ in range(100):
            _readable([ours.fileno()], 0.0001)
        assert 0.01 * S_PS <= clock.now() - began < 0.09 * S_PS, "not rounded up to a millisecond each"


def test_a_function_that_is_being_torn_out_is_not_waited_for(host, tmp_path):
    with Server(tmp_path / "stays", Nothing()) as stays, Server(tmp_path / "goes", Nothing()) as goes:
        functions = {n: SimpleNamespace(server=server) for n, server in enumerate((stays, goes))}
        vm = SimpleNamespace(functions=functions, serve=lambda: stays.serve() + goes.serve())
        pump = Pump(host, [], [vm])
        pump()
        goes.close()
        assert goes.fileno() == -1
        pump()
        stays.close()
        pump()
