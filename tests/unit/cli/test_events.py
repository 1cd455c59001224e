"""`virtfn events -f` against a lab that refuses, hangs up and ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from virtfn.api.control import AskError
from virtfn.machine.ports import VirtfnError

Virtfn = Callable[..., tuple[int, str, str]]


class Lab:
    """Answers as it is told, in turn; `None`: with the next event."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[VirtfnError | None] = []
        self.there = True
        monkeypatch.setattr("virtfn.api.control.ask", self.ask)
        monkeypatch.setattr("virtfn.api.control.only_lab", lambda lab: "rig")
        monkeypatch.setattr("virtfn.api.control.running_labs", lambda: ["rig"] * self.there)
        monkeypatch.setattr("virtfn.cli.events._LOOK_S", 0.0)

    def ask(self, method: str, params: Mapping[str, object], lab: str, *_: object) -> object:
        assert (method, lab) == ("events.read", "rig")
        said = self.answers.pop(0)
        if said is not None:
            self.there = bool(self.answers)
            raise said
        n = params["since"]
        assert isinstance(n, int)
        stamp = {"seconds": 0, "microseconds": 0}
        told = {"sequence": n, "event": "WORK_DONE", "timestamp": stamp, "data": {"finished": True}}
        return {"events": [told], "lost": 0, "next": n + 1}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(monkeypatch)


PASSING: list[VirtfnError] = [
    VirtfnError("32 requests wait already", errno_name="EBUSY"),
    VirtfnError("ask again later", errno_name="EAGAIN"),
    AskError("lab rig does not answer", errno_name="ETIMEDOUT"),
    AskError("lab rig has gone away in the middle of its answer"),
]


@pytest.mark.parametrize("end", [VirtfnError("it ends", errno_name="ESHUTDOWN"), AskError("no lab is running")])
def test_events_are_followed_to_the_end_of_the_lab_alone(virtfn: Virtfn, lab: Lab, end: VirtfnError) -> None:
    lab.answers = [*PASSING, None, *PASSING, None, end]
    code, out, err = virtfn("events", "-f", "--json", "-")
    assert (code, err) == (0, "virtfn: lab rig has ended\n")
    assert [json.loads(line)["sequence"] for line in out.splitlines()] == [0, 1]


def test_what_else_is_refused_is_an_error(virtfn: Virtfn, lab: Lab) -> None:
    lab.answers = [None, VirtfnError("a bug", errno_name="EIO"), None]
    code, _, err = virtfn("events", "-f")
    assert (code, err) == (1, "virtfn: a bug (EIO)\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not run: this system has no /dev/full")
def test_a_file_that_the_disk_refuses_is_named(virtfn: Virtfn, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "virtfn: /dev/full: cannot be written (No space left on device)\n"
    lab.answers = [None, None]
    assert virtfn("events", "-f", "--json", "/dev/full") == (1, "", said)
    state = {"lab": "rig", "pf": "pf0", "model": "82576", "vfs": 1, "state": {}}
    monkeypatch.setattr("virtfn.api.explain.read_state", lambda source, lab: state)
    monkeypatch.setattr("virtfn.api.explain.explain", lambda card, source, frame: {})
    assert virtfn("explain", "pf0", "00" * 60, "--save-state", "/dev/full") == (1, "", said)
