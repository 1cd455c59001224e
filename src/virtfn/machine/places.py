"""Where this user's sockets are, for those who tell errors as VirtfnError."""

from __future__ import annotations

from pathlib import Path

from virtfn import private
from virtfn.machine.ports import VirtfnError

__all__ = ["runtime_folder"]


def runtime_folder() -> Path:
    """Return the folder for sockets, states, tokens and guests' folders; made if missing.

    Raises VirtfnError (EACCES) if it is not this user's own and private.
    """
    try:
        return private.runtime_folder()
    except private.NotPrivateError as error:
        raise VirtfnError(error.reason, errno_name="EACCES") from None
