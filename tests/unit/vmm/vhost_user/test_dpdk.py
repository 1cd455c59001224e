"""DPDK's net_virtio_user as a client of the switch: testpmd sends back what another client sends to it, and polls."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unit.vhostclient import Client
from unit.virtiorig import ether, mac
from virtfn.vmm.vhost_user import Limits, Server, Switch

TESTPMD = shutil.which("dpdk-testpmd")
FRAMES = 300
pytestmark = [pytest.mark.slow, pytest.mark.skipif(TESTPMD is None, reason="needs dpdk-testpmd (Debian: dpdk-dev)")]


def start_testpmd(path: Path, *options: str) -> subprocess.Popen[str]:
    """Start testpmd with one port, which sends every frame back with its addresses swapped."""
    port = f"net_virtio_user0,path={path},queue_size=256,mac=02:00:00:00:00:11"
    command = f"{TESTPMD} --lcores 0@0,1@0 --no-huge -m 128 --no-pci --no-telemetry --no-shconf --vdev={port} --"
    work = "--forward-mode=macswap --auto-start --stats-period=1 --total-num-mbufs=4096 --no-lsc-interrupt"
    argv = [*command.split(), *work.split(), "--no-mlockall", *options]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tick_until(switch: Switch, done: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"no {what} in {timeout_s:g} s"
        switch()


def run_echo(switch: Switch, server: Server, client: Client) -> None:
    """Send frames of all sizes to testpmd, few at a time, and see each come back, in order."""
    sent: list[bytes] = []
    came: list[bytes] = []
    while len(sent) < FRAMES:
        for _ in range(16):
            size = 60 + len(sent) * 37 % 1455
            payload = bytes([len(sent) & 0xFF]) * (size - 14)
            client.transmit(ether(mac(1), mac(0), payload)[:size])
            sent.append(ether(mac(0), mac(1), payload)[:size])

        def arrived() -> bool:
            had = client.received()
            client.fill(len(had))
            came.extend(had)
            return len(came) >= len(sent)

        tick_until(switch, arrived, "answer")
        assert came == sent
    assert not server.back.errors()


def test_testpmd_answers_through_the_switch(tmp_path: Path) -> None:
    with Switch() as switch:
        server = switch.listen(tmp_path / "dpdk.sock", limits=Limits(trusted=True))
        client = Client(switch, switch.listen(tmp_path / "client.sock").path)
        client.connect()
        client.start()
        client.fill(32)
        testpmd = start_testpmd(server.path)
        try:
            tick_until(switch, lambda: server.back.up and server.back.row["rx"]["enabled"], "testpmd")
            for _ in range(200):
                switch()
            run_echo(switch, server, client)
        finally:
            testpmd.terminate()
            tick_until(switch, lambda: testpmd.poll() is not None, "end of testpmd")
            said = testpmd.communicate()[0]
            client.close()
        assert server.back.counters()["rx_frames"] >= FRAMES, said
        tick_until(switch, lambda: not server.connected, "end of the client")


def test_memory_that_could_shrink_is_refused_unless_the_client_is_trusted(tmp_path: Path) -> None:
    with Switch() as switch:
        server = switch.listen(tmp_path / "dpdk.sock")
        testpmd = start_testpmd(server.path)
        try:
            tick_until(switch, lambda: server.counters.get("refused:map-can-shrink"), "refusal")
        finally:
            testpmd.kill()
            testpmd.communicate()
        assert not server.back.up
