"""Labs as services: a process each, a state file each, several side by side.

    up      a process in the background holds the session; it says `ready`, or with what it failed
    state   NAME.state, in the folder for sockets: what runs, as a lab file, and in which process
    lost    a state whose process is gone: it was killed, or the machine was switched off

The state file is written when the lab is ready and at each change, and removed when the lab ends in good order.
"""

from __future__ import annotations

import contextlib
import errno
import html
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from virtfn import private
from virtfn.api.control import AskError, ask, running_labs
from virtfn.api.progress import OnProgress
from virtfn.api.stopped import Stopped
from virtfn.machine.places import runtime_folder
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:  # who only asks needs no machine
    from virtfn.api.lab import Lab
    from virtfn.api.session import Session
    from virtfn.api.session.service import StatusDocument

__all__ = [
    "Kept",
    "StatusEntry",
    "Web",
    "bring_down",
    "describe_loss",
    "find_kept",
    "find_lab",
    "find_up",
    "forget",
    "list_labs",
    "log_file",
    "read_token",
    "serve_lab",
    "serve_web",
    "token_file",
    "write_way",
]

_ASK_S = 5.0
_DOWN_S = 60.0
_WEB_S = 30.0
_SUFFIX, _TOKEN = ".state", ".token"
_LOOK_S = 0.02
_LAST_S = 1 << 36  # seconds since 1970: a date that can be written


@dataclass(frozen=True, slots=True)
class Kept:
    """What a state file says. lab: as the text of a lab file. pid, started: the process, and when (clock ticks).

    since: when the lab was ready, seconds since 1970. changes: how often it was changed since. rate: of its traffic.
    http: where it listens. error: with what it failed. stopped: the VFs in quarantine, which outlasts the process.
    """

    name: str
    pid: int
    started: int
    since: float
    lab: str
    changes: int = 0
    rate: int = 0
    http: str | None = None
    error: str = ""
    stopped: tuple[Stopped, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether its process is still there."""
        return _started(self.pid) == self.started


class StatusEntry(TypedDict):
    """One lab of `virtfn status --json`. state: as of the session, or `lost`; null: not known."""

    lab: str
    state: str
    pid: int
    since: float | None
    http: str | None
    lost: str | None
    status: StatusDocument | None


def _started(pid: int) -> int:
    """Return when a process started, in clock ticks since the machine did; 0 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


# State files.


def _put(name: str, text: str, folder: Path | None = None) -> Path:
    """Write a file beside the sockets. folder: where they are, of who has it open, so that nobody need look again."""
    path = (folder or runtime_folder()) / name
    try:
        private.write(path, text)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        where = path if folder is None else folder.readlink() / path.name
        raise VirtfnError(f"{where}: cannot be written ({error.strerror})", errno_name=name) from None
    return path


def _write(kept: Kept, folder: Path | None = None) -> None:
    _put(kept.name + _SUFFIX, json.dumps(asdict(kept)), folder)


def _read(path: Path) -> Kept | None:
    """Read a state file; None for one that is none, or cannot be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        stopped = tuple(map(Stopped.of, fields.pop("stopped", ())))
        kept = Kept(**fields, stopped=stopped)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    numbers = all(type(number) is int for number in (kept.pid, kept.started, kept.changes, kept.rate))
    words = all(isinstance(word, str) for word in (kept.name, kept.lab, kept.error, kept.http or ""))
    right = numbers and words and isinstance(kept.since, int | float) and 0 <= kept.since < _LAST_S
    right = right and kept.pid > 0 and kept.started > 0
    return kept if right and kept.name + _SUFFIX == path.name else None


def _all_kept() -> list[Kept]:
    return [kept for path in sorted(runtime_folder().glob("*" + _SUFFIX)) if (kept := _read(path)) is not None]


def find_kept(name: str) -> Kept | None:
    """Return what the state file of a lab says, whether it is up or lost; None if there is none."""
    return next((kept for kept in _all_kept() if kept.name == name), None)


def find_up(name: str) -> Kept | None:
    """Return what is kept of the lab that runs under that name; None if nothing is, or it does not answer."""
    kept = find_kept(name)
    if kept is None or not kept.alive:
        return None
    try:
        status = cast("StatusDocument", ask("lab.status", {}, name, _ASK_S))
    except VirtfnError:
        return None
    return kept if status["pid"] == kept.pid else None


def forget(name: str) -> None:
    """Remove the state file of a lab."""
    for suffix in (_SUFFIX, _TOKEN, ".log", ".html"):
        (runtime_folder() / (name + suffix)).unlink(missing_ok=True)


def write_way(name: str, address: str) -> Path:
    """Write a page, for its user alone, that leads a browser to an address; so no command line shows the token.

    Raises VirtfnError if it cannot be written.
    """
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">\n'
    return _put(f"{name}.html", page)


def log_file(name: str) -> Path:
    """Return where the process of a lab says what is wrong with it."""
    return runtime_folder() / f"{name}.log"


def token_file(name: str) -> Path:
    """Return where the token for HTTP of a lab is kept, for its user alone."""
    return runtime_folder() / f"{name}{_TOKEN}"


def read_token(name: str) -> str:
    """Return the token for HTTP of a lab; empty if it has none."""
    try:
        return token_file(name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def describe_loss(kept: Kept) -> str:
    """Say what was lost with a lab whose process is gone."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(kept.since))
    changed = f", with {kept.changes} changes since" if kept.changes else ""
    why = f"; it failed: {kept.error}" if kept.error else ""
    stopped = f"; still in quarantine: {', '.join(map(str, kept.stopped))}" if kept.stopped else ""
    gone = "its guests' memory, counters, events and what frames were under way are gone"
    return f"up from {since}{changed}{why}; {gone}{stopped}"


# In the process that holds the lab.


def serve_lab(
    lab: Lab,
    *,
    rate: int = 0,
    http: int | None = None,
    progress: OnProgress | None = None,
    ready: Callable[[StatusEntry], None],
) -> None:
    """Keep a lab up until it is told to end. rate: of its traffic; http: the port for HTTP, 0 for any; None: none.

    ready: is told when it is up, and how it is. If a lab of that name was lost, its VFs in quarantine stay there, as
    far as the same guests have them. Raises VirtfnError if a part refuses, or a lab of that name is up; one that fails
    once it was up is lost, and its state says why.
    """
    from virtfn.api.session import Session
    from virtfn.api.session.service import ReadStatus, StartTraffic

    before = find_kept(lab.name)
    stopped = before.stopped if before is not None and not before.alive else ()
    with Session(lab, controlled=True, standing=True, progress=progress, stopped=stopped) as session:
        session.start()
        if rate:
            session.ask(StartTraffic(rate))
        with contextlib.ExitStack() as closes:
            where = closes.enter_context(serve_web(lab.name, http)).where if http is not None else None
            with _kept(session, where):
                session.keep(lambda: ready(_entry_of_status(session.ask(ReadStatus()), find_kept(lab.name))))
                closes.close()
                session.stop()


@contextlib.contextmanager
def _kept(session: Session, http: str | None) -> Iterator[None]:
    """Keep the state of a lab in its file, at each change, until it ends in good order."""
    from virtfn.api.running import Documents
    from virtfn.api.session.quarantine import stopped_vfs

    began, since, changes, documents = _started(os.getpid()), time.time(), count(), Documents()

    def write(error: str = "") -> None:
        rate = session.live.standing.counts["rate"] if session.live.standing is not None else 0
        lab = session.lab
        text = json.dumps(documents.make(lab))  # JSON is YAML, and is written in a hundredth of the time
        stopped = tuple(stopped_vfs(session.machine))
        _write(Kept(lab.name, os.getpid(), began, since, text, next(changes), rate, http, error, stopped), folder)

    held = os.open(runtime_folder(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    folder = Path(f"/proc/self/fd/{held}")
    try:
        write()
        session.on_change = write
        yield
    except Exception as error:
        with contextlib.suppress(VirtfnError):
            write(str(error))
        raise
    finally:
        os.close(held)
    forget(session.lab.name)


@dataclass(frozen=True, slots=True)
class Web:
    """HTTP that is served for a lab. where: its address; process: which does it."""

    where: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serve_web(lab: str, port: int) -> Iterator[Web]:
    """Let a process serve HTTP for a lab, until the end of the block. port: 0 for any that is free.

    Raises VirtfnError if it cannot.
    """
    command, environment = [sys.executable, "-P", "-m", "virtfn.web", lab, str(port)], private.environment()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd="/", env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline().decode(errors="replace").strip()
            if not said.startswith("http:"):
                errno_name, _, why = said.partition(" ")
                raise VirtfnError(why or "HTTP does not start", errno_name=errno_name or "EIO")
            yield Web(said, process)
        finally:
            process.stdin.close()
            try:
                process.wait(_WEB_S)
            except subprocess.TimeoutExpired:
                process.kill()


# From outside.


def list_labs() -> list[StatusEntry]:
    """List all labs of this user: those that run, and those that were lost."""
    kept, running = {each.name: each for each in _all_kept()}, running_labs()
    return [_entry(name, kept.get(name), name in running) for name in sorted({*running, *kept})]


def find_lab(name: str) -> StatusEntry | None:
    """Return how one of them is; None if there is none of that name."""
    kept, running = find_kept(name), name in running_labs()
    return _entry(name, kept, running) if running or kept is not None else None


def _entry(name: str, kept: Kept | None, running: bool) -> StatusEntry:
    """Describe a lab. kept: what its state file says, which may be that of one that was lost before it."""
    if kept is not None and not kept.alive:
        if not running:
            lost = describe_loss(kept)
            return _entry_of(name, "lost", kept.pid, since=kept.since, lost=lost)
        kept = None
    try:
        status = cast("StatusDocument", ask("lab.status", {}, name, _ASK_S))
    except VirtfnError:
        status = None
    if status is not None:
        return _entry_of_status(status, kept)
    since, http, pid = (kept.since, kept.http, kept.pid) if kept is not None else (None, None, 0)
    return _entry_of(name, "starting", pid, since=since, http=http)


def _entry_of_status(status: StatusDocument, kept: Kept | None) -> StatusEntry:
    """Describe a lab that has answered. kept: what the state file of its name says, if it is its own."""
    since, http = (kept.since, kept.http) if kept is not None and kept.pid == status["pid"] else (None, None)
    return _entry_of(status["lab"], status["state"], status["pid"], since=since, http=http, status=status)


def _entry_of(
    name: str,
    state: str,
    pid: int,
    *,
    since: float | None,
    http: str | None = None,
    lost: str | None = None,
    status: StatusDocument | None = None,
) -> StatusEntry:
    return {"lab": name, "state": state, "pid": pid, "since": since, "http": http, "lost": lost, "status": status}


def bring_down(name: str | None) -> str:
    """Take a lab down in good order, and wait for its end; forget one that was lost. Returns its name.

    name: None for the only one. Raises VirtfnError if there is no such lab, or it does not end.
    """
    try:
        answer = cast("dict[str, object]", ask("lab.down", {}, name, _ASK_S))
        name, pid = str(answer["lab"]), int(cast(int, answer["pid"]))
        started = _started(pid)
    except VirtfnError as error:
        kept = find_kept(name) if name is not None else None
        if kept is None or (not kept.alive and kept.name in running_labs()):
            raise
        if not kept.alive:
            forget(kept.name)
            return kept.name
        if not isinstance(error, AskError) and find_up(kept.name) is None:
            raise  # who refuses is another
        pid, started = kept.pid, kept.started  # it does not answer
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _DOWN_S
    while started and _started(pid) == started:
        if time.monotonic() > end:
            raise VirtfnError(f"lab {name} does not end; process {pid} holds it", errno_name="ETIMEDOUT")
        time.sleep(_LOOK_S)
    return str(name)
