"""Starts a program that cannot outlive this process, and ends it by its own pid.

The kernel kills the child when the thread that made it ends (PR_SET_PDEATHSIG, prctl(2)). The signal is set by a small
Python that then becomes the program: code of ours between fork and exec would be unsafe beside other threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from virtfn.machine.ports import VirtfnError

__all__ = ["spawn"]

_BECOME = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def spawn(
    argv: Sequence[str], *, environ: Mapping[str, str], keep: Sequence[int] = (), stderr: int
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, so that Ctrl-C reaches this process alone, and in the folder /.

    QEMU takes firmware from where it is started before it looks where it belongs, and anyone may have put it there.
    environ: added to this process's environment; keep: descriptors that stay open; stderr: where errors go.
    The calling thread has to live as long as the program should. Raises VirtfnError if nothing can be started.
    """
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=tuple(keep),
            env={**os.environ, **environ},
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise VirtfnError(f"cannot start {argv[0]}: {error}") from error
