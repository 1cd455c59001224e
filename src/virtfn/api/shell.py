"""Consoles of the Linux guests that run, whichever lab they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import attach, console_doors

__all__ = ["ConsoleDocument", "attach", "find_console", "list_consoles"]


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
        others = f"there is {', '.join(sorted(doors))}" if doors else "virtfn run --keep keeps a lab up"
        raise VirtfnError(f"no Linux guest called {guest!r} runs; {others}", errno_name="ENOENT")
    return doors[guest]
