"""`virtfn up`, `down`: what they hand on, and what they write."""

from __future__ import annotations

import io
import json
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from unit.rig import lab_text
from virtfn.api import service
from virtfn.api.service import Kept
from virtfn.cli.main import cli

Virtfn = Callable[..., tuple[int, str, str]]

TELL = (
    "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), sys.stdin.read()]), file=sys.stderr); sys.exit(3)"
)
COMMENTED = "# a lab\n\n" + lab_text()


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_the_process_of_a_lab_gets_its_text_its_name_and_its_folder(
    virtfn: Virtfn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs" / "up.yaml").write_text(COMMENTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("virtfn.cli.service._CHILD", TELL)
    code, _, err = virtfn("up", "labs/up.yaml", "--traffic", "7")
    words, where, text = json.loads(err)
    assert (code, where, text) == (3, "/", COMMENTED)
    assert words[1:5] == ["up", "-", "--traffic", "7"]
    assert words[-4:] == ["--called", "labs/up.yaml", "--folder", str(tmp_path / "labs")]


def test_what_is_wrong_in_it_is_said_of_the_file(
    virtfn: Virtfn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = ("up", "-", "--ready-fd", "9", "--called", "labs/up.yaml", "--folder", str(tmp_path))
    stdin = types.SimpleNamespace(buffer=io.BytesIO(COMMENTED.replace("fan-in", "none-such").encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    code, _, err = virtfn(*handed)
    line = 1 + COMMENTED.splitlines().index("workload: {kind: fan-in, frames: 1000}")
    assert (code, err.startswith(f"virtfn: labs/up.yaml:{line}: workload.kind: ")) == (2, True)


def test_down_writes_what_was_known_last(virtfn: Virtfn, tmp_path: Path) -> None:
    (tmp_path / "virtfn").mkdir(mode=0o700)
    service._write(Kept("x", 2**22 + 1, 1, 1e9, lab_text(), changes=2))
    code, out, err = virtfn("down", "x", "--json", "-")
    assert (code, err) == (0, "")
    entry = json.loads(out)
    assert (entry["lab"], entry["state"], entry["pid"]) == ("x", "lost", 2**22 + 1)
    assert not os.listdir(tmp_path / "virtfn")
    assert virtfn("down", "x")[0] == 1


def test_every_command_takes_json() -> None:
    def without(command: click.Command, path: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            for name, each in command.commands.items():
                yield from without(each, f"{path} {name}")
        elif not any("--json" in option.opts for option in command.params):
            yield path

    assert list(without(cli, "virtfn")) == []


@pytest.mark.parametrize("target", ["-", "FILE"])
def test_up_in_the_foreground_writes_how_the_lab_is_when_it_is_ready(
    virtfn: Virtfn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    entry = {"lab": "rig", "state": "ready", "pid": 7}
    monkeypatch.setattr(service, "serve_lab", lambda lab, **options: options["ready"](entry))
    (tmp_path / "lab.yaml").write_text(lab_text())
    where = str(tmp_path / "json") if target == "FILE" else target
    code, out, err = virtfn("up", "--foreground", str(tmp_path / "lab.yaml"), "--json", where)
    assert (code, err) == (0, "")
    if target == "FILE":
        assert out == "ready: rig is up\n"
        out = (tmp_path / "json").read_text()
    assert json.loads(out) == entry


@pytest.mark.parametrize("target", ["-", "FILE"])
def test_exec_and_metrics_write_what_the_lab_answers(
    virtfn: Virtfn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    answers = {"guest.exec": {"status": 3, "output": "no\n"}, "session.snapshot": {"lab": "rig"}}
    monkeypatch.setattr("virtfn.api.control.ask", lambda method, *_: answers[method])
    monkeypatch.setattr("virtfn.api.shell.ask", lambda method, *_: answers[method])
    monkeypatch.setattr("virtfn.api.metrics.render_metrics", lambda snapshot, **_: f"{snapshot['lab']}_up 1\n")
    where = str(tmp_path / "json") if target == "FILE" else target
    for words, status, document, text in (
        (("exec", "--lab", "rig", "a", "false"), 3, answers["guest.exec"], "no\n"),
        (("metrics",), 0, answers["session.snapshot"], "rig_up 1\n"),
    ):
        code, out, err = virtfn(*words, "--json", where)
        assert (code, err) == (status, "")
        if target == "FILE":
            assert out == text
            out = (tmp_path / "json").read_text()
        assert json.loads(out) == document


def test_status_says_which_change_is_in_no_file(virtfn: Virtfn, monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"uptime_s": 1.0, "pfs": 1, "vfs": 4, "guests": 2, "attached": 2, "traffic": None}
    entries = [
        service._entry_of(name, "ready", 7, since=None, status=status | {"unwritten": why})
        for name, why in (("a", None), ("b", "b.state: cannot be written (No space left on device)"))
    ]
    monkeypatch.setattr(service, "list_labs", lambda: entries)
    code, out, _ = virtfn("status")
    assert (code, out.count("in no file")) == (0, 1)
    assert "b: its latest change is in no file: b.state: cannot be written (No space left on device)" in out
