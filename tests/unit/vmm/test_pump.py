"""The pump rests with whatever is there to wait for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from virtfn.machine.clock import WallClock
from virtfn.vmm.host import Host
from virtfn.vmm.pump import Pump
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
