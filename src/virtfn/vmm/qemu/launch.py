"""A guest under QEMU, from its start to its end.

    NEW --start--> RUNNING --close, or the guest powers off, or QEMU dies--> ENDED

While QEMU starts, plugs a function in or takes one out, it talks to the vfio-user server, which is this very process:
every wait takes a `tick` and calls it all the time. QMP, console and agent have a thread of their own.

However a guest ends, nothing stays behind: close() asks QEMU to quit, then insists (SIGTERM, SIGKILL, its own pid); the
kernel kills QEMU when this process dies; the guest's folder goes with close() or, after a kill, with the next start.
"""

from __future__ import annotations

import atexit
import socket
import subprocess
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.closing import refuse_rights
from virtfn.vmm.qemu.acceleration import Acceleration
from virtfn.vmm.qemu.agent import Agent
from virtfn.vmm.qemu.console import Console, Recording
from virtfn.vmm.qemu.find import Qemu
from virtfn.vmm.qemu.folder import CONSOLE, GuestFolder
from virtfn.vmm.qemu.leash import spawn
from virtfn.vmm.qemu.loop import Loop, Port
from virtfn.vmm.qemu.machine import Function, Machine, VirtioNic
from virtfn.vmm.qemu.monitor import Gone, Monitor
from virtfn.vmm.qemu.processors import Processors
from virtfn.vmm.qemu.wait import Tick, Watch, rest

__all__ = ["QemuGuest"]

QUIT_S = 3.0
STDERR_BYTES = 1 << 16

T = TypeVar("T")


class QemuGuest:
    """One virtual machine. folder: private to it, and a place for its functions' sockets; gone after close().

    console, agent: its serial ports. processors: for work that `ask` starts. events: what QEMU told (names, newest
    last, at most 256).
    """

    def __init__(self, machine: Machine, qemu: Qemu, acceleration: Acceleration, *, log: Path | None = None) -> None:
        """Prepare the guest. log: a file that gets all that the console says. Raises VirtfnError."""
        self.machine = machine
        self.acceleration = acceleration
        self.events: list[str] = []
        self._qemu = qemu
        self._watch = Watch(alive=self._check)
        self._child: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, Port] = {}
        self._stderr = Recording(STDERR_BYTES)
        self._plugged: dict[str, int] = {function.id: slot for slot, function in machine.placed()}
        self._refused: set[str] = set()
        self._monitor = Monitor(machine.name, self._on_event)
        self.processors = Processors(self._monitor.execute)
        self.console = Console(lambda typed: self._send("console", typed), self._watch, log)
        self.agent = Agent(lambda line: self._send("agent", line), self._watch)
        self._folder = GuestFolder(machine.name)
        self.folder = self._folder.path
        self._loop = Loop(f"qemu-{machine.name}")
        atexit.register(self.close)  # for a program that ends without it
        self._up = self._closed = False

    def __enter__(self) -> QemuGuest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Tell whether QEMU runs."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """Return QEMU's process id; 0 before the start."""
        return self._child.pid if self._child else 0

    @property
    def errors(self) -> str:
        """Return what QEMU printed on its standard error lately."""
        return self._stderr.text().strip()

    @property
    def plugged(self) -> dict[str, int]:
        """Return what is plugged into slots, with them."""
        return dict(self._plugged)

    def start(self, *, timeout_s: float = 60.0, tick: Tick = rest) -> None:
        """Start QEMU and let the guest boot; returns when the machine stands and its functions are plugged in.

        Raises VirtfnError with QEMU's own words if it ends at once, or if it is not there in `timeout_s`; then nothing
        is left of it.
        """
        self._check()
        if self._child is not None:
            raise VirtfnError(f"guest {self.machine.name} runs already", errno_name="EBUSY")
        try:
            self._call(self._start(), "the start of QEMU", timeout_s, tick)
        except BaseException:
            self.close(tick=tick)
            raise
        self._up = True

    async def _start(self) -> None:
        ours, theirs = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        for sock in ours:
            sock.setblocking(False)
            refuse_rights(sock)
        qmp, console, agent, stderr = ours
        try:
            for name, sock, sink in (
                ("console", console, self.console.feed),
                ("agent", agent, self.agent.feed),
                ("stderr", stderr, self._stderr.feed),
            ):
                self._ports[name] = await Port.open(self._loop, sock, sink)
            await self.console.open_door(self.folder / CONSOLE)
            descriptors = [sock.fileno() for sock in theirs]
            argv = self.machine.argv(
                self._qemu, self.acceleration, qmp=descriptors[0], console=descriptors[1], agent=descriptors[2]
            )
            # Here, since the child dies with the thread that made it, and this one lasts until close().
            self._child = spawn(argv, environ=self._qemu.environ, keep=descriptors[:3], stderr=descriptors[3])
        finally:
            for sock in theirs:
                sock.close()
            if self._child is None:
                qmp.close()
        await self._monitor.connect(qmp)

    def qmp(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = 30.0, tick: Tick = rest
    ) -> object:
        """Run a QMP command and return its answer. Raises VirtfnError if QEMU refuses, does not answer, or ended."""
        self._check()
        return self._call(self._monitor.execute(command, arguments or {}), f"an answer to {command}", timeout_s, tick)

    def ask(self, work: Callable[[Callable[..., Awaitable[object]]], Coroutine[object, object, T]]) -> Future[T]:
        """Start work on QMP commands, which it gives to a function, name and arguments; return what will come of it.

        It raises VirtfnError if QEMU refuses or ends.
        """
        return self._loop.start(work(self._monitor.execute))

    def plug(self, function: Function, *, timeout_s: float = 30.0, tick: Tick = rest) -> int:
        """Hot-add a function and return its slot; its driver in the guest takes another moment.

        Raises VirtfnError: name in use (EEXIST), no free slot (ENOSPC), or QEMU's own words.
        """
        return self.plug_card([function], timeout_s=timeout_s, tick=tick)

    def plug_card(self, functions: Sequence[Function], *, timeout_s: float = 30.0, tick: Tick = rest) -> int:
        """Hot-add the functions of one card, that at place 0 last, and return their slot.

        Raises VirtfnError as `plug`; functions that were there already stay until the guest ends, or the card is whole.
        """
        slot = self._take_slot(*(function.id for function in functions))
        for function in functions:
            try:
                self.qmp("device_add", function.device(slot), timeout_s=timeout_s, tick=tick)
            except BaseException:
                self._plugged.pop(function.id, None)
                raise
        return slot

    def connect(self, network: VirtioNic, *, timeout_s: float = 30.0, tick: Tick = rest) -> int:
        """Hot-add a virtio network device, whose back end answers in `tick`, and return its slot. It stays to the end.

        Raises VirtfnError as `plug` does.
        """
        slot = self._take_slot(network.id)
        try:
            for command, arguments in network.commands(slot):
                self.qmp(command, arguments, timeout_s=timeout_s, tick=tick)
        except BaseException:
            self._plugged.pop(network.id, None)
            raise
        return slot

    def _take_slot(self, *names: str) -> int:
        """Choose a slot for what is called so. Raises VirtfnError if there is none, or a name is taken."""
        for name in names:
            if name in self._plugged:
                raise VirtfnError(f"{name} is plugged in already", errno_name="EEXIST")
        free = sorted(set(range(self.machine.slots)) - set(self._plugged.values()))
        if not free:
            raise VirtfnError(f"guest {self.machine.name} has no free slot", errno_name="ENOSPC")
        self._plugged |= dict.fromkeys(names, free[0])
        return free[0]

    def unplug(self, device: str, *, timeout_s: float = 30.0, tick: Tick = rest) -> None:
        """Hot-remove a function, and the others of its card; returns when the guest has let go and all are gone.

        Raises VirtfnError: not plugged in (ENODEV), the guest refuses (EBUSY) or does not let go in `timeout_s`.
        """
        pieces = self.letting_go(device)
        self._watch.until(lambda: next(pieces, True) is True, f"the end of {device}", timeout_s=timeout_s, tick=tick)

    def letting_go(self, device: str) -> InPieces[None]:
        """Hot-remove a function as `unplug` does; each piece is a look whether the guest has let go, for ever.

        Raises VirtfnError as that does.
        """
        if device not in self._plugged:
            raise VirtfnError(f"{device} is not plugged in", errno_name="ENODEV")
        self._refused.discard(device)
        slot = self._plugged[device]
        asked = self._loop.start(self._monitor.execute("device_del", {"id": device}))
        while not asked.done():
            yield
        self._check()
        with self._last_words():
            asked.result()
        while slot in self._plugged.values() and device not in self._refused:
            self._check()
            yield
        if device in self._plugged:
            raise VirtfnError(f"the guest does not let go of {device}", errno_name="EBUSY")

    @contextmanager
    def stopped(self, *, timeout_s: float = 30.0, tick: Tick = rest) -> Iterator[None]:
        """Stop the guest's processors for a moment, and nobody else lets them go on. Raises VirtfnError as `qmp`."""
        self._processors(self.processors.stop(), timeout_s, tick)
        try:
            yield
        finally:
            self._processors(self.processors.go_on(), timeout_s, tick)

    def pause(self, *, tick: Tick = rest) -> None:
        """Stop the guest's processors. Raises VirtfnError as `qmp` does."""
        self._processors(self.processors.pause(), 30.0, tick)

    def resume(self, *, tick: Tick = rest) -> None:
        """Let a paused guest go on. Raises VirtfnError as `qmp` does."""
        self._processors(self.processors.resume(), 30.0, tick)

    def _processors(self, work: Coroutine[object, object, None], timeout_s: float, tick: Tick) -> None:
        try:
            self._check()
        except VirtfnError:
            work.close()
            raise
        self._call(work, "an answer about processors", timeout_s, tick)

    def wait_end(self, *, timeout_s: float = 60.0, tick: Tick = rest) -> int:
        """Wait until QEMU ends by itself, for example since the guest powered off, and return its exit status.

        Raises VirtfnError when it does not within `timeout_s`.
        """
        if self._child is None:
            raise VirtfnError(f"guest {self.machine.name} was not started")
        Watch().until(lambda: not self.running, "the end of QEMU", timeout_s=timeout_s, tick=tick)
        return self._child.wait()

    def close(self, *, tick: Tick = rest) -> None:
        """End the guest whatever its state, and remove its folder; may be called again."""
        if self._closed:
            return
        try:
            if self.running:
                with suppress(VirtfnError):
                    self.qmp("quit", timeout_s=QUIT_S, tick=tick)
                    self._ended_within(QUIT_S, tick)
            if self.running and self._child is not None:
                self._child.terminate()
                self._ended_within(QUIT_S, tick)
        finally:  # a second Ctrl-C only shortens the wait
            self._closed = True
            if self._child is not None:
                self._child.kill()
                self._child.wait()
            self.agent.end()
            with suppress(VirtfnError):
                self._loop.call(self._hang_up(), "the end of the connections", timeout_s=QUIT_S, watch=Watch())
            self._loop.stop()
            self._folder.close()
            atexit.unregister(self.close)

    def _ended_within(self, seconds: float, tick: Tick) -> None:
        with suppress(VirtfnError):
            Watch().until(lambda: not self.running, "the end of QEMU", timeout_s=seconds, tick=tick)

    async def _hang_up(self) -> None:
        await self._monitor.close()
        for port in self._ports.values():
            port.close()
        self.console.close()

    def _call(self, work: Coroutine[object, object, T], what: str, timeout_s: float, tick: Tick) -> T:
        with self._last_words():
            return self._loop.call(work, what, timeout_s=timeout_s, tick=tick, watch=self._watch)

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """Say why QEMU has gone, where it says so."""
        try:
            yield
        except Gone:
            self._ended_within(1.0, rest)  # the connection ends a little before its owner
            self._check()
            raise

    def _send(self, port: str, payload: bytes) -> None:
        if port not in self._ports:
            raise VirtfnError(f"guest {self.machine.name} does not run")
        self._ports[port].send(payload)

    def _check(self) -> None:
        """Raise VirtfnError with QEMU's last words if it has ended."""
        if self._closed:
            raise VirtfnError(f"guest {self.machine.name} was closed")
        if self._child is not None and (status := self._child.poll()) is not None:
            self._ports["stderr"].ended.wait(1.0)
            when = "" if self._up else " at start"
            how = f"signal {-status}" if status < 0 else f"status {status}"
            said = self.errors or "without a word"
            raise VirtfnError(f"guest {self.machine.name}: QEMU ended{when} ({how}): {said}")

    def _on_event(self, name: str, told: Mapping[str, object]) -> None:
        """Take an event of QEMU's, in the loop's thread."""
        self.events.append(name)
        del self.events[:-256]
        device = str(told.get("device", ""))
        if name == "DEVICE_DELETED":
            self._plugged.pop(device, None)
        elif name == "DEVICE_UNPLUG_GUEST_ERROR":
            self._refused.add(device)
