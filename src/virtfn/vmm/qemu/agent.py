"""The host's end of the agent channel: commands to a guest, exit status and output back. agent.sh is the other end.

    host to guest    a line: ID COMMAND         bytes of COMMAND that could break the line go as octal escapes
    guest to host    a line: ready              the agent has (re)started
    guest to host    a line: ID STATUS SIZE     COMMAND is done, SIZE bytes of output follow

IDs are random, so nothing that a guest prints by accident is taken for an answer.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu.wait import Tick, Watch, rest

__all__ = ["Agent", "Job", "Outcome", "agent_script"]

MAX_LINE = 4000  # a Linux terminal line holds 4095 bytes
MAX_OUTPUT = 1 << 20  # as agent.sh has it
MAX_NOISE = 1 << 16

_READY = re.compile(rb"[^ -~]*ready\r?")  # after whatever a port spits out when it is opened
_HEADER = re.compile(rb"([0-9a-f]{16}) (\d{1,3}) (\d{1,7})\r?")


def agent_script() -> bytes:
    """Return the program that a guest's init starts beside everything else: `sh agent.sh /dev/ttyS1 &`."""
    return resources.files("virtfn.vmm.qemu").joinpath("agent.sh").read_bytes()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command. output: standard output and error, as they were printed, at most 1 MiB."""

    status: int
    output: str


@dataclass(slots=True, eq=False)
class Job:
    """A command under way in a guest. outcome: None until it is done; lost: the guest forgot it, or has ended."""

    command: str
    outcome: Outcome | None = None
    lost: bool = False

    @property
    def done(self) -> bool:
        """Tell whether nothing more will come."""
        return self.lost or self.outcome is not None


class Agent:
    """Runs commands in a guest, several at a time. `feed` and the rest may be called from different threads."""

    def __init__(self, send: Callable[[bytes], None], watch: Watch) -> None:
        self._send = send
        self._watch = watch
        self._lock = threading.Lock()
        self._received = bytearray()
        self._jobs: dict[bytes, Job] = {}
        self._body: tuple[Job, int, int] | None = None  # whose output is coming, its status, its size
        self.ready = self._ended = False

    def wait_ready(self, *, timeout_s: float = 120.0, tick: Tick = rest) -> None:
        """Wait until the guest takes commands. Raises VirtfnError when it does not within `timeout_s`."""
        self._watch.until(lambda: self.ready, "the guest's agent", timeout_s=timeout_s, tick=tick)

    def start(self, command: str) -> Job:
        """Start a shell command in the guest and return at once.

        Raises VirtfnError if it is too long to send (E2BIG), or the guest has ended (ENODEV).
        """
        name = secrets.token_hex(8).encode()
        line = name + b" " + _escaped(command) + b"\n"
        if len(line) > MAX_LINE:
            raise VirtfnError(f"command of {len(line)} bytes: the agent takes {MAX_LINE}", errno_name="E2BIG")
        job = Job(command)
        with self._lock:
            if self._ended:
                raise VirtfnError("the guest has ended", errno_name="ENODEV")
            self._jobs[name] = job
        self._send(line)
        return job

    def wait(self, job: Job, *, timeout_s: float = 30.0, tick: Tick = rest) -> Outcome:
        """Wait for a command to end.

        Raises VirtfnError after `timeout_s` (the command goes on in the guest), when the guest restarts, or ends.
        """
        self._watch.until(lambda: job.done, f"the end of '{job.command}'", timeout_s=timeout_s, tick=tick)
        if job.outcome is None:
            raise VirtfnError(f"the guest {'ended' if self._ended else 'restarted'} during '{job.command}'")
        return job.outcome

    def run(self, command: str, *, timeout_s: float = 30.0, tick: Tick = rest) -> Outcome:
        """Run a shell command in the guest to its end. Raises VirtfnError as `start` and `wait` do."""
        return self.wait(self.start(command), timeout_s=timeout_s, tick=tick)

    def feed(self, received: bytes) -> None:
        """Take bytes from the guest's port."""
        with self._lock:
            self._received += received
            while self._step():
                pass
            if self._body is None and len(self._received) > MAX_NOISE:
                del self._received[:-MAX_LINE]  # no line of ours is longer

    def end(self) -> None:
        """Take note that the guest has ended: what was under way is lost."""
        with self._lock:
            if self._body is not None:
                self._body[0].lost = True
                self._body = None
            self._ended = True
            self._restart()

    def _step(self) -> bool:
        """Take one line, or the output that one announced; False when more bytes are needed."""
        if self._body is not None:
            job, status, size = self._body
            if len(self._received) < size:
                return False
            job.outcome = Outcome(status, self._received[:size].decode("utf-8", "replace"))
            del self._received[:size]
            self._body = None
            return True
        line, newline, _ = self._received.partition(b"\n")
        if not newline:
            return False
        del self._received[: len(line) + 1]
        if _READY.fullmatch(line):
            self._restart()
        elif (match := _HEADER.fullmatch(line)) and int(match[3]) <= MAX_OUTPUT and match[1] in self._jobs:
            self._body = self._jobs.pop(match[1]), int(match[2]), int(match[3])
        return True

    def _restart(self) -> None:
        for job in self._jobs.values():
            job.lost = True
        self._jobs.clear()
        self.ready = not self._ended


def _escaped(command: str) -> bytes:
    plain = set(range(0x20, 0x7F)) - {0x5C}
    return b"".join(
        bytes((byte,)) if byte in plain else b"\\0%03o" % byte for byte in command.encode("utf-8", "surrogateescape")
    )
