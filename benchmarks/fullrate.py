"""A lab at full rate in this process, and others beside it: what they cost it, slice by slice. For `service.py`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from virtfn.api import service
from virtfn.api.frames import TRAFFIC, make_frame
from virtfn.api.lab import parse_lab
from virtfn.api.session import Session
from virtfn.hw.eth import as_loaded
from virtfn.hw.types import Mac
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels.traffic import IDLE
from virtfn.machine.clock import S_PS
from virtfn.machine.memory import view_bytes

PARTNER = Mac(0x99_00_00_00_00_02)
COMMAND = [sys.executable, "-c", "from virtfn.cli.start import main; main()"]

T = TypeVar("T")


class FullRate:
    """A lab whose guests send as fast as they can, for ever: pairs, or the first of each PF to its wire.

    All that happens is in `go_on` and `slice`, which let it work; requests are answered meanwhile, as in a service.
    """

    def __init__(self, session: Session, frame_bytes: int, *, outside: bool = False) -> None:
        self._session = session
        self._cards = [pf.nic for pf in session.machine.pfs]
        for pf in session.machine.pfs:
            runs = session.machine.guests_of(pf)
            stations = [Station(run.driver.row, run.driver.mac) for run in runs]
            if outside:
                pf.nic.set_wire(True, 0)
                pf.nic.set_carrier(True)
                stations = [stations[0], Station(pf.nic.far_end(), PARTNER)]
            work = Workload("pairs", stations, length=frame_bytes - 4, frames=1 << 60, raw=True)
            if outside:
                work.row["tasks"]["kind"][1] = IDLE
            _fill(work, stations, frame_bytes)
            session.world.add_lane(Engine(session.machine.host, pf.served, [run.guest for run in runs], work))

    def slice(self, seconds: float) -> tuple[float, float]:
        """Return million frames in a second, and in a second of this process's processor time."""
        before, began, busy = self._frames(), time.monotonic(), time.process_time()
        self.go_on(lambda: False, seconds)
        frames = self._frames() - before
        return frames / (time.monotonic() - began) / 1e6, frames / (time.process_time() - busy) / 1e6

    def go_on(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Work until something is so, or time is up."""
        self._session.run_until(done, int(seconds * S_PS))

    def _frames(self) -> int:
        return sum(card.frames for card in self._cards)


def _fill(work: Workload, stations: Sequence[Station], frame_bytes: int) -> None:
    """Let each send IPv4/UDP in 64 flows to whom it sends to."""
    kind, rng = TRAFFIC["ipv4-udp"], random.Random(1)
    work.row["tasks"]["raw"][: len(stations)] = as_loaded(kind.arrives)
    for g, station in enumerate(stations):
        if work.row["tasks"]["kind"][g] == IDLE:
            continue
        d, target = station.row[0], stations[int(work.row["receivers"][g, 0])].mac
        count, step = int(d["tx_size"]), int(d["buffer_bytes"])
        buffers = view_bytes(int(d["tx_buffers"]), count * step - 64)
        lengths = view_bytes(int(d["tx_lengths"]), count * 8).view(np.int64)
        for i in range(count):
            frame = make_frame(kind, frame_bytes, i % kind.flows, station.mac, target, rng)
            buffers[i * step : i * step + len(frame.arrives)] = np.frombuffer(frame.arrives, np.uint8)
            lengths[i] = len(frame.arrives)


@contextlib.contextmanager
def at_full_rate(text: str, frame_bytes: int, *, outside: bool = False) -> Iterator[FullRate]:
    """Bring a lab up, whose state is kept as a service's is."""
    with Session(parse_lab(text), controlled=True, by_hand=True) as session:
        session.start()
        with service._kept(session, None):
            yield FullRate(session, frame_bytes, outside=outside)


@dataclass
class Asker:
    """A process that asks for ever, as often as it is told, and says how long each took; it rests in between."""

    process: subprocess.Popen[bytes]
    said: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, *what: str) -> Asker:
        """Start one of `service.py --be`."""
        script = str(Path(__file__).with_name("service.py"))
        process = subprocess.Popen([sys.executable, script, "--be", *what], stdout=subprocess.PIPE)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return cls(process)

    def ready(self) -> bool:
        """Whether it has asked; what it has said is taken."""
        assert self.process.stdout is not None
        self.said += [float(word) for word in (self.process.stdout.read() or b"").split()]
        return bool(self.said)

    def rest(self) -> None:
        """Let it ask nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def ask(self) -> None:
        """Let it ask again."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def costs(lab: FullRate, asker: Asker, pairs: int, seconds: float) -> list[tuple[float, float]]:
    """Let somebody ask and rest in turn; return what one question a second takes from the lab.

    As shares: of its rate, and of its frames for its processor time. Where others are at work, fewer questions come
    than are wanted: those that came count.
    """
    found = []
    lab.go_on(asker.ready)
    for pair in range(pairs):
        got, asked = {}, 0
        for asks in (False, True) if pair % 2 else (True, False):
            (asker.ask if asks else asker.rest)()
            lab.go_on(lambda: False, 0.1)
            asker.ready()
            before = len(asker.said)
            got[asks] = lab.slice(seconds)
            asker.ready()
            asked += (len(asker.said) - before) * asks
        rate = max(asked, 1) / seconds
        found.append(((1 - got[True][0] / got[False][0]) / rate, (1 - got[True][1] / got[False][1]) / rate))
    asker.ask()
    return found


def captured(lab: FullRate, interface: str, name: str, pairs: int, seconds: float) -> list[tuple[float, int, int]]:
    """Capture and do not, in turn; return the share of its rate that the lab keeps, frames captured, and lost."""
    found = []
    command = [*COMMAND, "capture", "-i", interface, "-w", "/dev/null", "--lab", name]
    for _ in range(pairs):
        alone, _ = lab.slice(seconds)
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            os.set_blocking(process.stderr.fileno(), False)
            said = bytearray()

            def told(words: bytes, said: bytearray = said, stderr: object = process.stderr) -> bool:
                said.extend(stderr.read() or b"")  # type: ignore[attr-defined]
                return words in said

            lab.go_on(lambda: told(b"capturing"))
            lab.go_on(lambda: False, 0.5)
            rate, _ = lab.slice(seconds)
            process.send_signal(signal.SIGINT)
            lab.go_on(lambda: told(b"frames captured"))
        assert b"frames captured" in said, f"the capture said: {said.decode()}"
        numbers = [int(word) for word in bytes(said).decode().replace(",", "").split() if word.isdecimal()]
        found.append((rate / alone, numbers[0], numbers[1] if len(numbers) > 1 else 0))
    return found


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Write a median and the middle half."""
    ordered = sorted(value * scale for value in values)
    quarter = len(ordered) // 4
    middle, low, high = statistics.median(ordered), ordered[quarter], ordered[-1 - quarter]
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
