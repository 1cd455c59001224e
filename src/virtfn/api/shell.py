"""Consoles of the Linux guests that run, whichever lab they belong to, and commands in them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from virtfn.api.control import AskError, ask, running_labs
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import attach, console_doors

if TYPE_CHECKING:  # who only asks needs no machine
    from virtfn.api.session.requests import OutcomeDocument

__all__ = ["ConsoleDocument", "attach", "find_console", "list_consoles", "run_in_guest"]

_LONGEST_S = 1e6


class ConsoleDocument(TypedDict):
    """One entry of the document of `virtfn shell --json`. console: a socket; who connects sees it and types into it."""

    guest: str
    console: str


def list_consoles() -> list[ConsoleDocument]:
    """List the Linux guests of this user that run, by name."""
    return [{"guest": name, "console": str(door)} for name, door in sorted(console_doors().items())]


def find_console(guest: str) -> Path:
    """Find the console of a guest that runs.

    Raises VirtfnError (ENOENT) that says which guests there are.
    """
    doors = console_doors()
    if guest not in doors:
        raise _nobody(guest)
    return doors[guest]


def _nobody(guest: str) -> VirtfnError:
    others = sorted(console_doors())
    instead = f"there is {', '.join(others)}" if others else "virtfn run --keep keeps a lab up"
    return VirtfnError(f"no Linux guest called {guest!r} runs; {instead}", errno_name="ENOENT")


def run_in_guest(guest: str, words: Sequence[str], lab: str | None = None) -> OutcomeDocument:
    """Run a command in a guest of a lab that runs, to its end; return what came of it.

    words: one is a line for the guest's shell, several are a command and its arguments. lab: which; without, the first
    that has such a guest. Raises VirtfnError if there is none, or the guest takes no commands.
    """
    command = words[0] if len(words) == 1 else shlex.join(words)
    labs = [lab] if lab is not None else running_labs()
    for name in labs:
        try:
            found = ask("guest.exec", {"guest": guest, "command": command}, name, _LONGEST_S)
            return cast("OutcomeDocument", found)
        except VirtfnError as error:
            if error.errno_name != "ENOENT" or isinstance(error, AskError):
                raise
    raise _nobody(guest)
