"""The control socket: whoever asks gets one document, and the lab goes on whatever is sent to it."""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtfn.api import control
from virtfn.api.control import MAX_CLIENTS, MAX_REQUEST, Control, Params, ask, running_labs
from virtfn.hw.types import Ps
from virtfn.machine.ports import VirtfnError


def refuse(params: Params) -> object:
    raise VirtfnError("not that", errno_name="EPERM")


METHODS = {
    "echo": lambda params: dict(params),
    "refuse": refuse,
    "bug": lambda params: 1 // 0,
    "odd": lambda params: object(),
    "large": lambda params: "x" * (5 << 20),
}


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def lab(name: str = "lab") -> Iterator[Control]:
    """Serve in the background."""
    made = Control(name, METHODS)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            made.serve(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield made
    finally:
        done.set()
        thread.join()
        made.close()


def connect(runtime: Path, name: str = "lab") -> socket.socket:
    fd = os.open(runtime / "virtfn", os.O_RDONLY)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(10)
    made.connect(f"/proc/self/fd/{fd}/{name}.sock")
    os.close(fd)
    return made


def raw(runtime: Path, request: bytes) -> dict[str, dict[str, str]]:
    with connect(runtime) as client:
        client.sendall(request)
        answer = b""
        while not answer.endswith(b"\n"):
            got = client.recv(1 << 16)
            assert got, "hung up without a word"
            answer += got
        return json.loads(answer)


def test_a_method_answers_and_the_name_goes_away_at_the_end() -> None:
    with lab():
        assert ask("echo", {"a": [1, None, "ä"]}) == {"a": [1, None, "ä"]}
        assert ask("echo", {}, "lab") == {}
        assert running_labs() == ["lab"]
    assert running_labs() == []
    with pytest.raises(VirtfnError, match=r"no lab is running; virtfn up LAB.yaml brings one up"):
        ask("echo", {})


def test_only_the_user_can_reach_it(runtime: Path) -> None:
    with lab():
        assert stat.S_IMODE(os.stat(runtime / "virtfn").st_mode) == 0o700
        assert stat.S_IMODE(os.stat(runtime / "virtfn" / "lab.sock").st_mode) == 0o600


@pytest.mark.parametrize(
    ("request_line", "words"),
    [
        (b"\n", "one line of JSON"),
        (b"nonsense\n", "one line of JSON"),
        (b"\xff\xfe\n", "one line of JSON"),
        (b"[" * 60000 + b"\n", "one line of JSON"),
        (b"1" * 60000 + b"\n", "one line of JSON"),
        (b"[]\n", "an object with method and params"),
        (b'{"method": "echo", "params": [1]}\n', "an object with method and params"),
        (b"{}\n", "no such method; there are bug, echo"),
        (b'{"method": ["echo"]}\n', "no such method"),
        (b'{"method": "bug"}\n', "ZeroDivisionError"),
        (b'{"method": "odd"}\n', "not JSON"),
        (b"x" * (MAX_REQUEST + 1), "up to 65536 bytes"),
    ],
)
def test_who_asks_badly_is_told(runtime: Path, request_line: bytes, words: str) -> None:
    with lab():
        assert words in raw(runtime, request_line)["error"]["message"]
        assert ask("echo", {"still": "there"}) == {"still": "there"}


def test_a_refusal_keeps_its_errno() -> None:
    with lab(), pytest.raises(VirtfnError, match="not that") as caught:
        ask("refuse", {})
    assert caught.value.errno_name == "EPERM"


def test_a_large_answer_arrives_whole() -> None:
    with lab():
        assert ask("large", {}) == "x" * (5 << 20)


def test_idle_clients_keep_nobody_from_asking(runtime: Path) -> None:
    with lab():
        idle = [connect(runtime) for _ in range(MAX_CLIENTS)]
        half = connect(runtime)
        half.sendall(b'{"method": "echo"')
        assert ask("echo", {"n": 1}) == {"n": 1}
        half.sendall(b"}\n")
        assert json.loads(half.recv(100)) == {"result": {}}
        for client in [*idle, half]:
            client.close()
        assert ask("echo", {"n": 2}) == {"n": 2}


def test_a_client_that_does_not_take_its_answer_holds_nothing_up(runtime: Path) -> None:
    with lab(), connect(runtime) as slow:
        slow.sendall(b'{"method": "large"}\n')
        assert ask("echo", {"n": 1}) == {"n": 1}


def test_serving_does_not_wait() -> None:
    made = Control("lab", METHODS)
    before = time.perf_counter()
    for _ in range(100):
        made.serve()
    assert time.perf_counter() - before < 1
    made.close()


def test_the_socket_of_a_dead_run_is_replaced(runtime: Path) -> None:
    with lab():
        pass
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(runtime / "virtfn", os.O_RDONLY)
    left.bind(f"/proc/self/fd/{fd}/lab.sock")
    os.close(fd)
    left.close()
    assert (runtime / "virtfn" / "lab.sock").exists()
    assert running_labs() == []
    with lab():
        assert ask("echo", {}) == {}


def test_a_lab_that_runs_keeps_its_name() -> None:
    with lab():
        with pytest.raises(VirtfnError, match="a lab called lab is running") as caught:
            Control("lab", METHODS)
        assert caught.value.errno_name == "EADDRINUSE"
        assert ask("echo", {"n": 1}) == {"n": 1}


def test_one_of_several_is_named() -> None:
    with lab("one"), lab("two"):
        assert running_labs() == ["one", "two"]
        with pytest.raises(VirtfnError, match="give --lab with one of one, two") as caught:
            ask("echo", {})
        assert caught.value.exit_status == 2  # type: ignore[attr-defined]
        assert ask("echo", {"n": 2}, "two") == {"n": 2}
        with pytest.raises(VirtfnError, match="no lab called three is running; there is one, two"):
            ask("echo", {}, "three")
        with pytest.raises(VirtfnError, match="is not the name of a lab"):
            ask("echo", {}, "../../etc")


def test_a_lab_that_hangs_or_ends_is_no_riddle() -> None:
    made = Control("lab", METHODS)
    with pytest.raises(VirtfnError, match="lab lab does not answer"):
        ask("echo", {}, timeout_s=0.05)
    thread = threading.Timer(0.05, made.close)
    thread.start()
    with pytest.raises(VirtfnError, match="lab lab has gone away"):
        ask("echo", {}, timeout_s=5)
    thread.join()


def test_without_a_runtime_folder_one_under_the_temporary_folder_serves(
    monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    for value in ("", "relative", str(runtime / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        with lab():
            assert (runtime / f"virtfn-{os.getuid()}" / "lab.sock").exists()
            assert ask("echo", {}) == {}


def test_a_folder_that_others_can_write_is_not_used(runtime: Path) -> None:
    for name in ("virtfn", f"virtfn-{os.getuid()}"):
        (runtime / name).mkdir()
        (runtime / name).chmod(0o777)
    with pytest.raises(VirtfnError, match="no folder of this user's own"):
        Control("lab", METHODS)
    (runtime / "virtfn").rmdir()
    (runtime / "virtfn").symlink_to("/tmp")
    with pytest.raises(VirtfnError, match="no folder of this user's own"):
        Control("lab", METHODS)


def test_a_long_path_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with lab("n" * 32):
        assert ask("echo", {}) == {}


def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with lab():
            ask("echo", {})
            with pytest.raises(VirtfnError):
                Control("lab", {})
    assert len(os.listdir("/proc/self/fd")) == before
    assert control.running_labs() == []


def test_nobody_sends_descriptors(runtime: Path) -> None:
    """To close what came, a lab could have to wait; a kernel that knows how refuses it to the sender."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            pytest.skip("this kernel has no SO_PASSRIGHTS")
    with lab(), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(runtime / "virtfn" / "lab.sock"))
        with pytest.raises(PermissionError):
            client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))])


def test_an_answer_may_come_later_and_others_are_served_meanwhile(runtime: Path) -> None:
    later: list[Future[object]] = [Future(), Future(), Future()]
    waiting = iter(later)
    with lab() as made, connect(runtime) as client, connect(runtime) as other:
        made.methods["later"] = lambda params: next(waiting)
        for each in (client, other):
            each.sendall(b'{"method": "later"}\n and more that nobody reads')
            assert ask("echo", {"n": 1}) == {"n": 1}
        client.shutdown(socket.SHUT_WR)
        later[0].set_result({"at": "last"})
        assert json.loads(client.recv(100)) == {"result": {"at": "last"}}
        later[1].set_exception(VirtfnError("not that", errno_name="EPERM"))
        assert json.loads(other.recv(100)) == {"error": {"message": "not that", "errno": "EPERM"}}
        with connect(runtime) as third:
            third.sendall(b'{"method": "later"}\n')
            assert ask("echo", {}) == {}
            idle = [connect(runtime) for _ in range(MAX_CLIENTS)]
            assert ask("echo", {}) == {}
        for each in idle:
            each.close()
    assert later[2].cancelled(), "who was sent away waits for nothing"


def test_who_hangs_up_while_it_waits_waits_for_nothing(runtime: Path) -> None:
    later: list[Future[object]] = [Future(), Future()]
    waiting = iter(later)
    made = Control("lab", {**METHODS, "later": lambda params: next(waiting)})
    try:
        with connect(runtime) as client, connect(runtime) as other:
            for each in (client, other):
                each.sendall(b'{"method": "later"}\n')
                for _ in range(3):
                    made.serve()
            other.shutdown(socket.SHUT_WR)
            made.serve()
            assert not any(future.cancelled() for future in later)
            client.close()
            made.serve()
            assert [future.cancelled() for future in later] == [True, False]
            later[1].set_result("heard")
            for _ in range(3):
                made.serve()
            assert json.loads(other.recv(100)) == {"result": "heard"}
    finally:
        made.close()


def test_a_long_answer_becomes_json_a_piece_each_turn(runtime: Path) -> None:
    rows = [{"n": n, "text": "x" * 40} for n in range(10_000)]
    made = Control("lab", {**METHODS, "rows": lambda params: rows})
    try:
        with connect(runtime) as client, connect(runtime) as quick:
            client.sendall(b'{"method": "rows"}\n')
            made.serve()
            assert made.turn(Ps(0)) == 1, "it goes on, though nobody sends anything"
            quick.sendall(b'{"method": "echo"}\n')
            for _ in range(3):
                made.serve()
            assert json.loads(quick.recv(100)) == {"result": {}}
            turns = 0
            while made.turn(Ps(0)):
                turns += 1
            assert 20 < turns < 200
            got = b""
            while not got.endswith(b"\n"):
                made.serve()
                got += client.recv(1 << 16)
            assert json.loads(got) == {"result": rows}
    finally:
        made.close()
