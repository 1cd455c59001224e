"""A person at a guest's console: what `virtfn shell GUEST` does."""

from __future__ import annotations

import os
import select
import socket
import termios
import tty
from pathlib import Path

from virtfn.machine.ports import VirtfnError

__all__ = ["ESCAPE", "attach"]

_SILENCE_S = 2.0
ESCAPE = 0x1D  # Ctrl-]


def attach(door: Path, *, stdin: int = 0, stdout: int = 1) -> None:
    """Join a terminal to a console until Ctrl-], the end of input, or the end of the guest.

    After the end of input the guest has its say, until it is silent for two seconds.

    door: a socket of `console_doors()`; stdin, stdout: descriptors, a terminal or not. Raises VirtfnError if nobody is
    behind the door.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(door))
        except OSError as error:
            raise VirtfnError(f"no guest at {door}: {error.strerror}", errno_name="ENOENT") from error
        before = termios.tcgetattr(stdin) if os.isatty(stdin) else None
        if before is not None:
            tty.setraw(stdin)
        try:
            _join(sock, stdin, stdout)
        except (BrokenPipeError, ConnectionResetError):
            pass  # either side is gone: that is an end like any other
        finally:
            if before is not None:
                termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _join(sock: socket.socket, stdin: int, stdout: int) -> None:
    sources = [stdin]
    while True:
        readable, _, _ = select.select([sock.fileno(), *sources], [], [], None if sources else _SILENCE_S)
        if not readable:
            return
        if sock.fileno() in readable:
            if not (said := sock.recv(65536)):
                return
            while said:
                said = said[os.write(stdout, said) :]
        if stdin in readable:
            typed = os.read(stdin, 4096)
            before, escape, _ = typed.partition(bytes((ESCAPE,)))
            sock.sendall(before)
            if escape:
                return
            if not typed:
                sources.remove(stdin)
