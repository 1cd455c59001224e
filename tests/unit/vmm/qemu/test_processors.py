"""Processors that are stopped for a moment: one section at a time, and what a round of writes leaves behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.hostcard import ConfigWrite
from virtfn.vmm.qemu.machinery import _write
from virtfn.vmm.qemu.processors import Processors


class Played:
    """A QEMU that takes its time for each command. said: what it was told, in order; refuses: what it does not do."""

    def __init__(self, *, running: bool = True) -> None:
        self.said: list[str] = []
        self.running = running
        self.refuses = ""

    async def execute(self, command: str, arguments: Mapping[str, object]) -> object:
        words = str(arguments.get("command-line", command))
        if words != "query-status":
            self.said.append(words)
        await asyncio.sleep(0.001)
        if self.refuses and words.startswith(self.refuses):
            raise VirtfnError("no")
        if command in ("stop", "cont"):
            self.running = command == "cont"
        if words.startswith("i/w"):
            return "portl[0xcf8] = 0x80001234" if "cf8" in words else "portl[0xcfc] = 0x00010500"
        return {"running": self.running} if command == "query-status" else ""


def test_sections_do_not_cross() -> None:
    qemu = Played()
    processors = Processors(qemu.execute)

    async def section(name: str) -> None:
        async with processors:
            assert not qemu.running
            qemu.said.append(name)
            await asyncio.sleep(0.002)

    async def run() -> None:
        await asyncio.gather(section("a"), section("b"))
        async with asyncio.timeout(5):
            paused = asyncio.ensure_future(processors.pause())
            late = asyncio.ensure_future(section("c"))
            await paused
            await processors.pause()  # it is already
            await asyncio.sleep(0.01)
            assert not late.done()
            assert not qemu.running
            await processors.resume()
            await late

    asyncio.run(run())
    assert qemu.said == ["stop", "a", "cont", "stop", "b", "cont", "stop", "cont", "stop", "c", "cont"]


def test_processors_that_never_ran_are_left_so_until_they_are_to_run() -> None:
    qemu = Played(running=False)
    processors = Processors(qemu.execute)

    async def run() -> None:
        async with processors:
            pass
        assert qemu.said == []
        await processors.resume()

    asyncio.run(run())
    assert qemu.said == ["cont"]


@pytest.mark.parametrize("refuses", ["stop", "cont"])
def test_a_qemu_that_refuses_holds_nobody_up(refuses: str) -> None:
    qemu = Played()
    processors = Processors(qemu.execute)

    async def run() -> None:
        qemu.refuses = refuses
        with pytest.raises(VirtfnError):
            async with processors:
                pass
        qemu.refuses, qemu.running = "", True
        async with asyncio.timeout(5), processors:
            assert not qemu.running

    asyncio.run(run())
    assert qemu.running


def test_who_is_cancelled_in_the_middle_lets_processors_go_on() -> None:
    qemu = Played()
    processors = Processors(qemu.execute)

    async def run(commands: int) -> None:
        qemu.said.clear()
        writes = [ConfigWrite(0x80, 0x10, 4, 1)] * 3
        task = asyncio.ensure_future(_write(qemu.execute, processors, 0x10, writes))
        while len(qemu.said) < commands and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    for commands in range(1, 12):
        asyncio.run(run(commands))
        assert qemu.running, qemu.said
        assert qemu.said[-1] == "cont"
        if commands > 3:
            assert qemu.said[-2] == "o/w 0xcf8 0x80001234", qemu.said


@pytest.mark.parametrize("refuses", ["o/w 0xcfc", "o/h 0xcfc", "i/w 0xcfc"])
def test_the_address_of_configuration_space_is_put_back_whatever_is_refused(refuses: str) -> None:
    qemu = Played()
    qemu.refuses = refuses
    writes = [ConfigWrite(0x80, 0x10, 4, 1), ConfigWrite(0x80, 4, 2, 2)]
    with pytest.raises(VirtfnError):
        asyncio.run(_write(qemu.execute, Processors(qemu.execute), 0x10, writes))
    assert qemu.said[-2:] == ["o/w 0xcf8 0x80001234", "cont"]
    assert qemu.running
