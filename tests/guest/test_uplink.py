"""Linux guests reach the outside: through passt without root, through a tap the host's own network stack."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.rig import LinuxRig
from unit.vmm.uplink.outside import ADDRESS, GATEWAY, ip, own_network, run_passt
from virtfn.vmm.qemu import Watch
from virtfn.vmm.uplink import StreamUplink, TapUplink, Uplink, Wire

pytestmark = pytest.mark.guest

_SERVER = """\
import functools, http.server, pathlib, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        pathlib.Path(self.translate_path(self.path)).write_bytes(sent)
        self.send_response(200)
        self.end_headers()
server = http.server.HTTPServer(("", 0), functools.partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"""
_LEASE = """\
printf '#!/bin/sh
[ "$1" = bound ] && ip addr add $ip/$mask dev $interface && ip route add default via $router
exit 0' > /tmp/lease && chmod +x /tmp/lease && ip link set eth0 up && udhcpc -i eth0 -n -q -f -t 10 -s /tmp/lease
"""


@contextmanager
def serve(folder: Path) -> Iterator[int]:
    """Serve a page and a few megabytes on this machine, and store what is posted. Yields the port."""
    (folder / "page").write_bytes(random.Random(4).randbytes(1000))
    (folder / "megabytes").write_bytes(random.Random(5).randbytes(8 << 20))
    words = [sys.executable, "-c", _SERVER, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def lead(rig: LinuxRig, uplink: Uplink) -> None:
    """Let the wire of the rig's NIC lead to an uplink; the rig closes both."""
    rig.wires.append(Wire(rig.nic, uplink))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_a_guest_gets_an_address_and_pages_from_outside(qemu, image, logs, tmp_path):
    with serve(tmp_path) as port, run_passt() as path, LinuxRig(qemu, image, logs, guests=1) as rig:
        lead(rig, StreamUplink(path, rig.host.clock))
        said = rig.run(0, _LEASE)
        assert f"lease of {ADDRESS} obtained from {GATEWAY}" in said
        # passt leads connections to its gateway's address to this machine's loopback.
        where = f"http://{GATEWAY}:{port}"
        assert md5(tmp_path / "page") in rig.run(0, f"wget -q -O - {where}/page | md5sum")
        # Megabytes need the guest's bare acknowledgements, which the card would fill up to the minimum for a cable.
        rig.run(0, f"wget -q -O /tmp/megabytes {where}/megabytes")
        assert md5(tmp_path / "megabytes") in rig.run(0, "md5sum /tmp/megabytes")
        head = f"POST /back HTTP/1.0\\r\\nContent-Length: {8 << 20}\\r\\n\\r\\n"  # busybox's wget would end at a zero
        # Debian 12's passt never passes on that the server has closed, so nobody waits for nc's end.
        rig.run(0, f"{{ printf '{head}'; cat /tmp/megabytes; }} | timeout 30 nc {GATEWAY} {port} >/dev/null &")
        back = tmp_path / "back"
        Watch().until(lambda: back.exists() and back.stat().st_size == 8 << 20, "the file", timeout_s=30, tick=rig.pump)
        assert md5(tmp_path / "megabytes") == md5(back)
        assert rig.wires[0].uplink.counts == {"connected": 1}
        rig.check()


def test_the_link_of_a_guest_is_that_of_its_uplink(qemu, image, logs, tmp_path):
    with LinuxRig(qemu, image, logs, guests=1) as rig:
        lead(rig, StreamUplink(tmp_path / "wire", rig.host.clock, listening=True))
        rig.run(0, "ip link set eth0 up")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(str(tmp_path / "wire"))
            rig.until(lambda: rig.carrier(0), "a link")
        rig.until(lambda: not rig.carrier(0), "no link")


def test_linux_and_its_guest_ping_each_other_through_a_tap(qemu, image, logs, tmp_path):
    if shutil.which("ping") is None:
        pytest.skip("not run: ping is not installed")
    with own_network(), LinuxRig(qemu, image, logs, guests=1) as rig:
        lead(rig, TapUplink("tap7", rig.host.clock))
        ip("address", "add", "10.77.0.100/24", "dev", "tap7")
        rig.up(0, net="10.77.0")
        assert rig.reaches(0, "10.77.0.100")
        assert rig.ping(0, "10.77.0.100", "-c 5 -i 0.05 -s 8000")[1] == 5  # in pieces
        with subprocess.Popen(
            ["ping", "-q", "-c", "10", "-i", "0.05", "10.77.0.1"], stdout=subprocess.PIPE, text=True
        ) as ping:
            Watch().until(lambda: ping.poll() is not None, "the ping's end", timeout_s=60, tick=rig.pump)
            assert ping.stdout is not None
            assert "10 received" in ping.stdout.read()
        with serve(tmp_path) as port:
            where = f"http://10.77.0.100:{port}/megabytes"
            assert md5(tmp_path / "megabytes") in rig.run(0, f"wget -q -O - {where} | md5sum")
        rig.check()
