"""The process that serves HTTP for a lab that runs, on loopback.

It ends with whoever started it, if that holds the other end of its standard input.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from virtfn import private
from virtfn.api.control import ask
from virtfn.api.service import token_file
from virtfn.machine.ports import VirtfnError
from virtfn.web.app import make_app
from virtfn.web.connections import CONNECTIONS, make_server
from virtfn.web.door import WAITING

__all__ = ["drop_token", "listen", "make_token", "serve"]

_ASK_S, _WAIT_S = 30.0, 600.0


def make_token(lab: str) -> str:
    """Make a new token for a lab, and keep it in its file. Raises VirtfnError if it cannot be written."""
    token = secrets.token_urlsafe(32)
    path = token_file(lab)
    try:
        private.write(path, token + "\n")
    except OSError as error:
        raise VirtfnError(f"{path}: cannot be written ({error.strerror})", errno_name="EACCES") from None
    return token


def drop_token(lab: str, token: str) -> None:
    """Remove the file of a token, unless somebody else has put another there."""
    path = token_file(lab)
    with suppress(OSError):
        if path.read_text(encoding="utf-8").strip() == token:
            path.unlink()


def listen(port: int) -> socket.socket:
    """Listen on loopback. port: 0 for any. Raises VirtfnError if somebody else has it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        name = errno.errorcode.get(error.errno or 0, "")
        raise VirtfnError(f"port {port} of loopback: {error.strerror}; choose another", errno_name=name) from None
    return listener


def serve(lab: str, listener: socket.socket, token: str, *, until_stdin_ends: bool = False) -> None:
    """Serve HTTP for a lab until a signal comes, or standard input ends."""

    def put(method: str, params: Mapping[str, object]) -> object:
        return ask(method, params, lab, _WAIT_S if method in WAITING else _ASK_S)

    app = make_app(put, token, listener.getsockname()[1])
    server = make_server(app, "warning" if os.environ.get("VIRTFN_DEBUG") else "critical")
    if until_stdin_ends:

        def wait() -> None:
            while os.read(0, 4096):
                pass
            server.should_exit = True

        threading.Thread(target=wait, daemon=True).start()
    with suppress(KeyboardInterrupt):  # Ctrl-C in the terminal reaches this process, too
        server.run(sockets=[listener])
