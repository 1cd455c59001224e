"""Ask a lab that runs: a socket by its name, one line of JSON in, one line of JSON back.

    -> {"method": "iommu.show", "params": {...}}
    <- {"result": ...}  or  {"error": {"message": ..., "errno": ...}}

A door, and an actor without thread or wait: whoever carries requests out may answer later, and long answers become JSON
in pieces. Where `replies` has its turn after those who carry out, an answer leaves in the step that heard the question.
Clients are of the same user, but may be anything: what they send is bounded, who asks badly is told so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from virtfn.api.encoding import encode
from virtfn.hw.types import Ps
from virtfn.machine.places import runtime_folder
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.vmm.closing import refuse_rights

__all__ = ["AskError", "Control", "Handed", "Handler", "Params", "ask", "ask_handed", "only_lab", "running_labs"]

Params = Mapping[str, object]
Handler = Callable[[Params], object]
"""Takes the params of a request, returns what JSON can hold, or a Future of it. Raises VirtfnError to refuse."""

MAX_REQUEST = 1 << 16
MAX_ANSWER = 1 << 26
MAX_CLIENTS = 16
_IN_LINE = 128  # connections not yet accepted; more are refused at once
_CHUNK = 1 << 16
_MOST_HANDED = 4
_PIECES = 2  # of answers that are made each turn
_ROUNDS = 4  # a turn: who has just come, or has only looked whether somebody is here, need not wait for the next
_TIMEOUT_S = 30.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SUFFIX = ".sock"


class AskError(VirtfnError):
    """A question that cannot be put: no lab, or no single one. ETIMEDOUT: there is one, and it does not answer."""

    def __init__(self, message: str, exit_status: int = 1, errno_name: str = "") -> None:
        super().__init__(message, errno_name=errno_name)
        self.exit_status = exit_status


class Handed:
    """An answer that descriptors come with. They are its own, and closed when they are sent, or nobody takes them."""

    def __init__(self, document: object, descriptors: Sequence[int]) -> None:
        self.document = document
        self.descriptors = list(descriptors)

    def close(self) -> None:
        """Close what nobody has taken."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    __del__ = close


@dataclass(slots=True, eq=False)
class _Client:
    """One connection: what it has sent so far, and what it has not taken yet."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    waiting: memoryview = field(default_factory=lambda: memoryview(b""))
    handed: Handed | None = None


@dataclass(slots=True, eq=False)
class _Answer:
    """A document that becomes JSON: what is still to be encoded, and what is."""

    client: _Client
    pieces: Iterator[str]
    handed: Handed | None = None
    text: bytearray = field(default_factory=bytearray)


class _Replies(Actor):
    """The way out of a control socket."""

    def __init__(self, reply: Callable[[], int]) -> None:
        self._reply = reply

    def turn(self, now: Ps) -> int:
        """Answer those whose answers have come; return how many still become JSON."""
        return self._reply()


class Control(Actor):
    """The socket of a lab that runs. `serve` it often, `close` it at the end.

    methods: what clients may ask for. replies: an actor whose turn is half of this one's, for after those who carry
    requests out. Raises VirtfnError if a lab of that name runs already, or the socket cannot be made.
    """

    def __init__(self, name: str, methods: Mapping[str, Handler]) -> None:
        self.methods = dict(methods)
        self.replies = _Replies(self._answer)
        self._file = _check_name(name) + _SUFFIX
        self._folder = os.open(runtime_folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        refuse_rights(self._listener)  # those who connect inherit it
        try:
            with _locked(self._folder):
                self._identity = self._bind(name)
        except OSError as error:
            self._abandon()
            reason = error.strerror or str(error)
            raise VirtfnError(f"lab {name} cannot be asked from outside: {reason}", errno_name=_errno(error)) from None
        except VirtfnError:
            self._abandon()
            raise
        self._clients: list[_Client] = []
        self._later: list[tuple[_Client, Future[object]]] = []
        self._answers: deque[_Answer] = deque()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def _bind(self, name: str) -> tuple[int, int]:
        path = _short(self._folder, self._file)
        if os.path.lexists(path):
            if _answers(path):
                raise VirtfnError(
                    f"a lab called {name} is running; end it, or give this one another name", errno_name="EADDRINUSE"
                )
            os.unlink(path)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(_IN_LINE)
        made = os.stat(path)
        return made.st_dev, made.st_ino

    def _abandon(self) -> None:
        self._listener.close()
        os.close(self._folder)

    def serve(self, wait_s: float = 0.0) -> None:
        """Do what can be done now; with `wait_s`, first wait so long for something to do."""
        if self._hear(0.0 if self._answers else wait_s):
            for _ in range(_ROUNDS - 1):
                if not self._hear(0.0):
                    break
        self._answer()

    def _hear(self, wait_s: float) -> bool:
        """Listen to all who have something to say, once; return whether there was anybody."""
        heard = self._selector.select(wait_s)
        for key, events in heard:
            client = key.data
            try:
                if client is None:
                    self._accept()
                elif client.waiting:
                    self._send(client)
                elif events & selectors.EVENT_READ:
                    self._receive(client)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError:
                if client is not None:
                    self._drop(client)
        return bool(heard)

    def _answer(self) -> int:
        """Make pieces of answers, and send those that are whole; return how many are not."""
        self._collect()
        for _ in range(_PIECES):
            if self._answers:
                self._encode()
        return len(self._answers)

    def turn(self, now: Ps) -> int:
        """Answer what has been asked; return how many answers still become JSON."""
        self.serve()
        return len(self._answers)

    def fileno(self) -> int:
        """Return the descriptor that can be read when somebody asks."""
        return self._selector.fileno()

    def close(self) -> None:
        """End all connections, and take the name away."""
        for client in list(self._clients):
            self._drop(client)
        self._collect()  # nobody waits any more
        self._selector.close()
        with contextlib.suppress(OSError), _locked(self._folder):
            path = _short(self._folder, self._file)
            made = os.stat(path, follow_symlinks=False)
            if (made.st_dev, made.st_ino) == self._identity:
                os.unlink(path)
        self._abandon()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        if len(self._clients) == MAX_CLIENTS:  # who has been here longest has had its time
            self._drop(self._clients[0])
        client = _Client(connection)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _drop(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            with contextlib.suppress(KeyError):  # who waits for an answer is not listened to
                self._selector.unregister(client.socket)
            client.socket.close()

    def _receive(self, client: _Client) -> None:
        got = client.socket.recv(_CHUNK)
        if not got:
            self._drop(client)
            return
        client.received += got
        line, newline, _ = client.received.partition(b"\n")
        if not newline and len(line) <= MAX_REQUEST:
            return
        self._selector.unregister(client.socket)
        if len(line) > MAX_REQUEST:
            self._reply(client, _refusal(f"a request has up to {MAX_REQUEST} bytes", "EMSGSIZE"))
        else:
            self._take(client, bytes(line))

    def _collect(self) -> None:
        """Begin to answer those whose answer has come; forget those who have gone, and want none any more."""
        waiting, self._later = self._later, []
        gone = _hung_up([client for client, _ in waiting]) if waiting else []
        for client, future in waiting:
            if client in gone:
                self._drop(client)
            if client not in self._clients:
                future.cancel()
            elif future.done():
                self._reply(client, _outcome(future.result))
            else:
                self._later.append((client, future))

    def _reply(self, client: _Client, answer: dict[str, object]) -> None:
        handed = answer.get("result")
        if isinstance(handed, Handed):
            self._answers.append(_Answer(client, encode({"result": handed.document}), handed))
        else:
            self._answers.append(_Answer(client, encode(answer)))

    def _encode(self) -> None:
        """Encode a piece of the answer whose turn it is, and send it when it is whole."""
        answer = self._answers.popleft()
        if answer.client not in self._clients:
            return None
        try:
            piece = next(answer.pieces, None)
        except (TypeError, ValueError, RecursionError) as error:
            return self._reply(answer.client, _refusal(f"this is a bug in virtfn: not JSON: {error}", "EIO"))
        if piece is not None:
            answer.text += piece.encode()
            if len(answer.text) > MAX_ANSWER:
                return self._reply(answer.client, _refusal(f"the answer has more than {MAX_ANSWER} bytes", "EMSGSIZE"))
            return self._answers.append(answer)
        answer.client.waiting = memoryview(bytes(answer.text) + b"\n")
        answer.client.handed = answer.handed
        self._selector.register(answer.client.socket, selectors.EVENT_WRITE, answer.client)
        try:
            self._send(answer.client)
        except (BlockingIOError, InterruptedError):  # when there is room
            return None
        except OSError:
            self._drop(answer.client)
        return None

    def _send(self, client: _Client) -> None:
        piece = client.waiting[:_CHUNK]
        if client.handed is None:
            sent = client.socket.send(piece)
        else:
            sent = socket.send_fds(client.socket, [piece], client.handed.descriptors)
            client.handed.close()
            client.handed = None
        client.waiting = client.waiting[sent:]
        if not client.waiting:
            self._drop(client)

    def _take(self, client: _Client, line: bytes) -> None:
        """Give a request to whoever carries it out."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return self._reply(client, _refusal("a request is one line of JSON", "EINVAL"))
        if not isinstance(request, dict) or not isinstance(request.get("params", {}), dict):
            return self._reply(client, _refusal("a request is an object with method and params", "EINVAL"))
        name = request.get("method")
        handler = self.methods.get(name) if isinstance(name, str) else None
        if handler is None:
            words = f"no such method; there are {', '.join(sorted(self.methods))}"
            return self._reply(client, _refusal(words, "EOPNOTSUPP"))
        answer = _outcome(lambda: handler(request.get("params", {})))
        later = answer.get("result")
        if isinstance(later, Future):
            self._later.append((client, later))
            return None
        return self._reply(client, answer)


def _hung_up(clients: Sequence[_Client]) -> list[_Client]:
    """List those who have closed their connection; who has only said all that he has to say has not."""
    poll = select.poll()
    by_fd = {client.socket.fileno(): client for client in clients}
    for fd in by_fd:
        if fd >= 0:
            poll.register(fd, 0)  # hanging up is always told
    return [by_fd[fd] for fd, _ in poll.poll(0)]


def _outcome(answer: Callable[[], object]) -> dict[str, object]:
    """Get an answer, or what is said instead of one."""
    try:
        return {"result": answer()}
    except VirtfnError as error:
        return _refusal(str(error), error.errno_name)
    except Exception as error:  # the lab goes on, whatever a question does
        return _refusal(f"this is a bug in virtfn: {type(error).__name__}: {str(error)[:200]}", "EIO")


def _refusal(message: str, errno_name: str) -> dict[str, object]:
    return {"error": {"message": message, "errno": errno_name}}


# The other side.


def running_labs() -> list[str]:
    """List the labs that run, by name."""
    return sorted({path.name.removesuffix(_SUFFIX) for path in _sockets()})


def ask(method: str, params: Params, lab: str | None = None, timeout_s: float = _TIMEOUT_S) -> object:
    """Ask a lab that runs, by its name or the only one there is; return the result.

    Raises VirtfnError if there is none, or several, or it refuses, or does not answer in time.
    """
    return _ask(method, params, lab, timeout_s, None)


def ask_handed(method: str, params: Params, lab: str | None = None, timeout_s: float = _TIMEOUT_S) -> Handed:
    """Ask as `ask` does, for an answer that descriptors come with. Raises VirtfnError as that does."""
    handed = Handed(None, ())
    handed.document = _ask(method, params, lab, timeout_s, handed.descriptors)
    return handed


def _ask(method: str, params: Params, lab: str | None, timeout_s: float, descriptors: list[int] | None) -> object:
    found = _find(lab) if lab is None else runtime_folder() / (_check_name(lab) + _SUFFIX)
    name = found.name.removesuffix(_SUFFIX)
    request = json.dumps({"method": method, "params": dict(params)})
    try:
        try:
            answer = _exchange(found, request, timeout_s, descriptors)
        except (FileNotFoundError, ConnectionRefusedError):  # nobody is there: say who is
            answer = _exchange(_find(lab), request, timeout_s, descriptors)
    except (TimeoutError, BlockingIOError):
        raise AskError(f"lab {name} does not answer", errno_name="ETIMEDOUT") from None
    except OSError as error:
        raise AskError(f"lab {name} has gone away ({error.strerror or error})") from None
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and "result" in document:
        return document["result"]
    refused = document.get("error") if isinstance(document, dict) else None
    if not isinstance(refused, dict):
        raise AskError(f"lab {name} has gone away in the middle of its answer")
    raise VirtfnError(str(refused.get("message")), errno_name=str(refused.get("errno", "")))


def only_lab(lab: str | None) -> str:
    """Return the name of a lab that runs: this one, or the only one. Raises VirtfnError as `ask` does."""
    return _find(lab).name.removesuffix(_SUFFIX)


def _find(lab: str | None) -> Path:
    if lab is not None:
        _check_name(lab)
    found = [path for path in _sockets() if lab is None or path.name == lab + _SUFFIX]
    if not found:
        others = running_labs() if lab is not None else []
        instead = f"there is {', '.join(others)}" if others else "virtfn up LAB.yaml brings one up"
        raise AskError(f"no lab {'' if lab is None else f'called {lab} '}is running; {instead}")
    if len(found) > 1:
        raise AskError(f"several labs are running; give --lab with one of {', '.join(running_labs())}", 2)
    return found[0]


def _exchange(path: Path, request: str, timeout_s: float, descriptors: list[int] | None) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _opened(path.parent) as folder:
        connection.settimeout(timeout_s)
        connection.connect(_short(folder, path.name))
        connection.sendall(request.encode() + b"\n")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            if descriptors is None:
                got = connection.recv(1 << 20)
            else:
                got, rights, _, _ = socket.recv_fds(connection, 1 << 20, _MOST_HANDED, socket.MSG_CMSG_CLOEXEC)
                descriptors += rights
            if not got or len(answer) > MAX_ANSWER + _CHUNK:
                break
            answer += got
    return bytes(answer)


def _sockets() -> Iterator[Path]:
    """Yield the sockets that somebody serves, where a lab of this user would be."""
    try:
        folder = runtime_folder()
    except VirtfnError:
        return
    with _opened(folder) as fd:
        for path in sorted(folder.glob("*" + _SUFFIX)):
            if _NAME.fullmatch(path.name.removesuffix(_SUFFIX)) and _answers(_short(fd, path.name)):
                yield path


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # alive, with many in line
            return True
        except OSError:
            return False
    return True


# Where sockets are.


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise AskError(f"{name!r} is not the name of a lab", 2)
    return name


def _short(folder: int, name: str) -> str:
    """Name a file by its open folder: the address of a socket has room for 107 bytes, whatever the path is."""
    return f"/proc/self/fd/{folder}/{name}"


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(folder: int) -> Iterator[None]:
    """Keep other labs from looking at a name and taking it between our look and our taking it."""
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


def _errno(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "")
