"""Arguments for QEMU that a user adds to a guest: those that would break the lab are refused by name.

A lab's guest is found by what virtfn gives QEMU: its name, memory, machine, root ports, serial ports and QMP. Whatever
else a user adds is QEMU's business, and what QEMU says to it is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

__all__ = ["refused_argument"]

_MACHINE = "virtfn makes the machine, so that functions find their slots"
_REFUSED = {
    "name": "the guest has its name from the lab; leave it out",
    "M": f"{_MACHINE}; leave it out",
    "machine": f"{_MACHINE}; leave it out",
    "m": "use memory-mib",
    "smp": "use cpus",
    "kernel": "use kernel",
    "initrd": "use initrd",
    "append": "use append",
    "S": "virtfn lets the guest run once all is plugged in; leave it out",
    "incoming": "the guest boots here; leave it out",
    "loadvm": "the guest boots here; leave it out",
    "daemonize": "virtfn waits for QEMU's end; leave it out",
    "preconfig": "virtfn waits for the machine; leave it out",
    "chroot": "sockets are found by their paths; leave it out",
    "runas": "sockets are this user's; leave it out",
    "run-with": "sockets are found by their paths, as this user; leave it out",
    "sandbox": "functions come while QEMU runs; leave it out",
    "readconfig": "what is in it is not looked at; write it as arguments",
    "mem-path": "memory is shared by virtfn; use memory-mib",
    "mem-prealloc": "memory is shared by virtfn; use memory-mib",
    "version": "the guest is to run; leave it out",
    "help": "the guest is to run; leave it out",
    "h": "the guest is to run; leave it out",
}
_NAMES = re.compile(r"(?:rp\d+|ram|qmp|console|agent|disk|f[0-9a-f]{4}|vif(?:-net|-channel)?)")
"""IDs that virtfn gives to parts of the machine."""
_PORT = re.compile(r"rp\d+")
_MOST, _LONGEST = 128, 4096


def refused_argument(arguments: Sequence[str]) -> tuple[int, str] | None:
    """Find the first argument that would break a lab: its place, and why and what instead, in words."""
    if len(arguments) > _MOST:
        return _MOST, f"are {len(arguments)} arguments; {_MOST} is the most"
    for place, argument in enumerate(arguments):
        if len(argument) > _LONGEST or not argument.isprintable():
            return place, f"is no argument; printable text, up to {_LONGEST} characters"
        if argument.startswith("-"):
            option = argument.lstrip("-")
            if option in _REFUSED:
                return place, f"-{option} would break the lab: {_REFUSED[option]}"
            continue
        values = _values(argument)
        if _NAMES.fullmatch(values.get("id", "")):
            return place, f"id={values['id']} is the name of a part of virtfn's; choose another"
        if _PORT.fullmatch(values.get("bus", "")):
            return place, f"bus={values['bus']} is for the guest's function; use bus=pcie.0 with addr 1 to 0xe"
    return None


def _values(argument: str) -> dict[str, str]:
    """Read the values of an argument, written as JSON or as NAME=VALUE, parted by commas."""
    if argument.startswith("{"):
        try:
            found = json.loads(argument)
        except (ValueError, RecursionError):
            return {}
        return {str(name): str(value) for name, value in found.items()}
    pairs = (part.partition("=") for part in argument.replace(",,", "\0").split(","))
    return {name: value.replace("\0", ",") for name, _, value in pairs}
