"""Labs of Linux guests by the commands that people type: run, brought up as services, and bereft of a machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtfn.api.service import find_kept

COMMAND = [sys.executable, "-c", "from virtfn.cli.start import main; main()"]


def virtfn(*arguments: str, stdin: str = "", status: int = 0) -> str:
    """Run a command, and return all that it says."""
    result = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=900)
    assert result.returncode == status, f"{arguments}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr


@contextmanager
def up(name: str, lab: str, stdin: str = "") -> Iterator[int]:
    """Bring a lab up, yield the process that has it, and take down whatever is left, if something failed."""
    try:
        assert f"ready: {name} is up" in virtfn("up", lab, stdin=stdin)
        kept = find_kept(name)
        assert kept is not None
        yield kept.pid
    finally:
        subprocess.run([*COMMAND, "down", name], check=False)


def machines(parent: int) -> set[int]:
    """List the virtual machines that a process has started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, words = (path / "status").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"\nPPid:\t{parent}\n" in state and b"virtfn.name=" in words:
            found.add(int(path.name))
    return found


def kill(machine: int) -> dict[str, Any]:
    """Kill a virtual machine of the only lab, and return how the lab is when it has seen that."""
    os.kill(machine, signal.SIGKILL)
    end = time.monotonic() + 60
    while "GUEST_ENDED" not in virtfn("events"):
        assert time.monotonic() < end
    (status,) = json.loads(virtfn("status", "--json", "-"))["labs"]
    return dict(status)
