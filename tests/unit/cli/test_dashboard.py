"""`virtfn dashboard`: where the page is, who serves it, and how that ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `web` is not installed")

import httpx

from unit.rig import lab_text
from virtfn.api import service
from virtfn.api.lab import parse_lab
from virtfn.api.service import Kept
from virtfn.api.session import Session
from virtfn.cli.main import main


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "virtfn"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, runtime: Path) -> None:
    """A lab that serves HTTP itself."""
    kept = Kept("shown", os.getpid(), 1, 0.0, "", http="http://127.0.0.1:8256")
    monkeypatch.setattr("virtfn.api.control.only_lab", lambda lab: "shown")
    monkeypatch.setattr(service, "find_up", lambda name: kept)
    monkeypatch.setattr(service, "read_token", lambda name: "a&token")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["dashboard", *arguments])
    return int(end.value.code or 0)


@pytest.mark.usefixtures("served")
def test_a_lab_that_serves_http_has_its_page_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "http://127.0.0.1:8256/#token=a&token\n"
    assert run("--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == {"lab": "shown", "http": "http://127.0.0.1:8256"}, "and no token"
    assert run("--port", "8256") == 0
    assert run("--port", "9000") == 2
    assert "serves HTTP at http://127.0.0.1:8256 already" in capsys.readouterr().err


@pytest.mark.usefixtures("served")
def test_a_browser_is_opened_without_the_token_on_its_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert run("--open") == 0
    (address,) = opened
    assert address.startswith("file:")
    assert "token" not in address
    path = Path(address.removeprefix("file://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert 'content="0; url=http://127.0.0.1:8256/#token=a&amp;token"' in path.read_text(encoding="utf-8")
    service.forget("shown")
    assert not path.exists()


def test_without_a_lab_there_is_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 1
    assert run("no-such-lab") == 1
    assert run("a/b") == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_a_port_that_is_taken_is_said_with_its_errno(runtime: Path) -> None:
    import socket

    from virtfn.machine.ports import VirtfnError

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(VirtfnError, match=f"port {port} of loopback") as refused, service.serve_web("shown", port):
            pass
    assert refused.value.errno_name == "EADDRINUSE"


@pytest.mark.slow
def test_it_serves_the_page_until_a_signal_comes(runtime: Path) -> None:
    found: list[httpx.Response] = []
    with Session(parse_lab(lab_text()), controlled=True, standing=True) as session:
        session.start()
        name = session.lab.name
        command = [sys.executable, "-c", "from virtfn.cli.start import main; main()", "dashboard", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

            def look() -> None:
                assert process.stdout is not None
                where, _, token = process.stdout.readline().strip().partition("#token=")
                headers = {"Authorization": f"Bearer {token}"}
                found.append(httpx.get(where, timeout=60))
                found.append(httpx.post(f"{where}api/session.snapshot", headers=headers, timeout=60))
                found.append(httpx.post(f"{where}api/session.snapshot", timeout=60))
                assert stat.S_IMODE((runtime / f"{name}.token").stat().st_mode) == 0o600
                process.send_signal(signal.SIGINT)

            ended = _until(session, look, process)
            said = process.stderr.read() if process.stderr else ""
        assert (ended, said) == (0, "")
    assert [response.status_code for response in found] == [200, 200, 401]
    assert found[1].json()["lab"] == name
    assert not (runtime / f"{name}.token").exists()


def _until(session: Session, look: Callable[[], None], process: subprocess.Popen[str]) -> int | None:
    """Keep the lab going while somebody looks at it, and until a process has ended; return its status."""
    looking = threading.Thread(target=look)
    looking.start()
    session.run_until(lambda: not looking.is_alive() and process.poll() is not None, 120 * 10**12)
    process.kill()
    looking.join(10)
    return process.returncode
