"""What QEMU does for a card of a guest that makes VFs itself, from outside the guest's processors (`hostcard.py`).

    the window of configuration space   a property of the host bridge
    a write to configuration space      processors stopped; port CF8 says what port CFC then is; processors go on

The monitor's commands for I/O ports are made for people. What they say is checked, and CF8 is put back: a processor may
have been stopped between the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from virtfn.hw.pci import Type1
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.hostcard import ConfigWrite
from virtfn.vmm.qemu.processors import Execute, Processors

__all__ = ["QemuMachinery", "write_ports"]

_ADDRESS, _VALUE, _ENABLE = 0xCF8, 0xCFC, 1 << 31
_UNMAPPED = (1 << 64) - 1
T = TypeVar("T")

_SAID = re.compile(r"= 0x([0-9a-fA-F]{1,8})\s*$")


class Asked(Protocol):
    """A QEMU whose monitor virtfn has, whoever has started it."""

    @property
    def processors(self) -> Processors:
        """The guest's processors, for work that `ask` starts."""

    def ask(self, work: Callable[[Execute], Coroutine[object, object, T]]) -> Future[T]:
        """Start work on QMP commands, and return what will come of it; a VirtfnError if QEMU refuses or is gone."""


class QemuMachinery:
    """What a QEMU does; a `Machinery`. port: function number on bus 0 of the root port that the card is behind."""

    def __init__(self, guest: Asked, port: int) -> None:
        self.port = port
        self._guest = guest

    def config_window(self) -> Future[int]:
        """Find the address of the window of configuration space; a VirtfnError if the firmware has opened none."""
        return self._guest.ask(_find_window)

    def write_config(self, writes: Sequence[ConfigWrite]) -> Future[None]:
        """Write to configuration spaces behind the port, with processors stopped; a VirtfnError if QEMU refuses."""
        return self._guest.ask(lambda execute: _write(execute, self._guest.processors, self.port, writes))


async def _find_window(execute: Execute) -> int:
    found = await execute("qom-get", {"path": "/machine/q35", "property": "MCFG"})
    if not isinstance(found, int) or found == _UNMAPPED:
        raise VirtfnError("the guest's firmware has opened no window of configuration space", errno_name="ENXIO")
    return found


async def _write(execute: Execute, processors: Processors, port: int, writes: Sequence[ConfigWrite]) -> None:
    async with processors:
        before = await _read_port(execute, _ADDRESS)
        try:
            await _write_port(execute, _ADDRESS, 4, _ENABLE | port << 8 | Type1.PRIMARY.offset)
            bus = await _read_port(execute, _VALUE) >> 8 & 0xFF
            await write_ports(execute, bus, writes)
        finally:
            await _write_port(execute, _ADDRESS, 4, before)


async def write_ports(execute: Execute, bus: int, writes: Sequence[ConfigWrite]) -> None:
    """Write to configuration spaces of functions on a bus through I/O ports. Raises VirtfnError if QEMU refuses."""
    for write in writes:
        await _write_port(execute, _ADDRESS, 4, _ENABLE | bus << 16 | write.function << 8 | write.offset)
        await _write_port(execute, _VALUE, write.size, write.value)


async def _read_port(execute: Execute, port: int) -> int:
    said = str(await execute("human-monitor-command", {"command-line": f"i/w {port:#x}"}))
    value = _SAID.search(said)
    if value is None:
        raise VirtfnError(f"QEMU's monitor reads no port: {said.strip()}", errno_name="EOPNOTSUPP")
    return int(value[1], 16)


async def _write_port(execute: Execute, port: int, size: int, value: int) -> None:
    letter = {2: "h", 4: "w"}[size]
    said = str(await execute("human-monitor-command", {"command-line": f"o/{letter} {port:#x} {value:#x}"})).strip()
    if said:
        raise VirtfnError(f"QEMU's monitor writes no port: {said}", errno_name="EOPNOTSUPP")
