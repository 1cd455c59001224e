"""What is outside in tests of uplinks: a network namespace of a test's own, and passt at a socket."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtfn.kernels import warm

ADDRESS, GATEWAY = "10.99.0.15", "10.99.0.1"
PATIENCE_S = 10.0
_CLONE_NEWNET = 0x40000000


def obstacle_to_taps() -> str:
    if os.geteuid() != 0:
        return "needs root, for a network namespace of its own"
    return "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "needs /dev/net/tun"


@contextmanager
def own_network() -> Iterator[None]:
    """Be in a network namespace in which all is allowed, and that is gone afterwards."""
    if why := obstacle_to_taps():
        pytest.skip(f"not run: {why}")
    warm.load()  # nobody outside should have to wait for kernels to compile
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            pytest.skip("not run: network namespaces are not allowed here")
        try:
            yield
        finally:
            assert libc.setns(home, _CLONE_NEWNET) == 0
    finally:
        os.close(home)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def run_passt() -> Iterator[Path]:
    """Run a passt, and return its socket. Started by root it becomes nobody, who must reach that folder."""
    program = shutil.which("passt")
    if program is None:
        pytest.skip("not run: passt is not installed")
    warm.load()
    with tempfile.TemporaryDirectory(prefix="passt-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        path = folder / "wire"
        words = [program, "-f", "-e", "-4", "-m", "1500", "-a", ADDRESS, "-n", "24", "-g", GATEWAY, "-s", str(path)]
        with (folder / "log").open("w") as log, subprocess.Popen(words, stderr=log, stdout=log) as process:
            try:
                end = time.monotonic() + PATIENCE_S
                while "You can now start qemu" not in (said := (folder / "log").read_text()):
                    if process.poll() is not None or time.monotonic() > end:
                        pytest.skip(f"not run: passt does not work here: {said.splitlines()[-1:]}")
                    time.sleep(0.01)
                yield path
            finally:
                process.kill()
