"""Captures of a lab that is up: what the file says, who reads it, and how a tap ends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unit.rig import lab_text
from virtfn.api import capture
from virtfn.api.capture import record
from virtfn.api.control import Control, Handed, ask_handed
from virtfn.api.explain import StateError, explain, frame_of_capture, frame_of_hex, load_state
from virtfn.api.lab import parse_lab
from virtfn.api.session import ReadCard, Session, StartCapture, captures
from virtfn.api.signals import ended_by_signals
from virtfn.drivers.policy import StormLimits, SwitchPolicy
from virtfn.machine.captures import CaptureError, read_capture
from virtfn.machine.ports import VirtfnError

FRAMES = 40


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Run a lab with a tap; the file, the report of the capture, and the state of the card."""
    path = tmp_path_factory.mktemp("capture") / "all.pcapng"
    with Session(parse_lab(lab_text(workload=f"{{kind: pairs, frames: {FRAMES}}}"))) as session:
        session.start()
        handed = session.ask(StartCapture.from_params({"interface": "pf0", "points": ["tx", "switch", "rx", "drop"]}))
        card = session.ask(ReadCard("pf0"))
        session.work()
        session.stop()
        done = record(handed, path)
        handed.close()
    return path, cast(dict[str, Any], done), cast(dict[str, Any], card)


def test_every_frame_is_there_at_each_point(captured: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    path, done, _ = captured
    frames = read_capture(path)
    assert done["frames"] == len(frames)
    assert done["lost"] == 0
    assert done["interfaces"][:2] == ["pf0/vf0", "pf0/vf1"]
    alike = Counter(frames.frame(i).tobytes() for i in range(len(frames)))
    work = [count for frame, count in alike.items() if frame[0] & 1 == 0]
    assert sum(count == 3 for count in work) >= 2 * FRAMES  # sent, switched, received


def test_what_storm_control_drops_is_captured_with_its_reason_and_explained(tmp_path: Path) -> None:
    text = lab_text(workload="{kind: broadcast, frame-bytes: 1518, frames: 40}")
    broadcast = b"\xff" * 6 + bytes.fromhex("020000000010" + "88b5") + bytes(1500)
    with Session(parse_lab(text)) as session:
        session.start()
        pf = session.machine.pfs[0]
        pf.driver.set_switch(SwitchPolicy(storm=StormLimits(broadcast=1)))
        handed = session.ask(StartCapture.from_params({"interface": "pf0"}))
        before = explain(session.ask(ReadCard("pf0")), "pf0/vf0", broadcast)
        session.work()
        after = explain(session.ask(ReadCard("pf0")), "pf0/vf0", broadcast)
        dropped = pf.nic.all_drops()["storm"]
        session.stop()
        record(handed, tmp_path / "storm.pcapng")
        handed.close()
    assert dropped > 20
    assert (tmp_path / "storm.pcapng").read_bytes().count(b"dropped: storm") == dropped
    assert before["outcome"] == "forwarded"
    assert next(step["words"] for step in before["steps"] if step["stage"] == "storm control") == (
        "with it, 1518 bytes of broadcasts in this window, of 12480: passes"
    )
    assert (after["outcome"], after["dropped"]) == ("dropped", [{"interface": "pf0/vf0", "reason": "storm"}])
    assert after["steps"][-1]["register"] == "SCCRL, BSCTRH"
    assert [words.split(":")[0] for words in after["unknown"]] == [
        "whether the IOMMU lets the card read the frame, and write it where it goes",
        "how long it waits",
        "what others send before it in this window of storm control",
    ]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="not run: no tshark (Debian package tshark)")
def test_tshark_reads_names_directions_comments_and_losses(
    captured: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    path, done, _ = captured
    fields = ["frame.interface_name", "frame.interface_description", "frame.packet_flags_direction", "frame.comment"]
    arguments = [word for field in fields for word in ("-e", field)]
    shown = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|", *arguments],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout.splitlines()  # fmt: skip
    assert len(shown) == done["frames"]
    lines = Counter(tuple(line.split("|")) for line in shown)
    assert all(name.startswith("pf0") and about for name, about, _, _ in lines)
    sent = next(line for line in lines if line[0] == "pf0/vf0" and line[3] == "to pf0/vf1")
    assert sent[2] in ("0x00000002", "2", "0x02")
    told = subprocess.run(["capinfos", "-M", str(path)], capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"Number of packets:   {done['frames']}" in told


@pytest.mark.parametrize(
    ("params", "errno_name"),
    [
        ({"interface": "pf0/vf9"}, "ENODEV"),
        ({"interface": "pf7"}, "ENODEV"),
        ({"interface": "pf0/eth0"}, "EINVAL"),
        ({"interface": 3}, "EINVAL"),
        ({"interface": "pf0", "points": ["everywhere"]}, "EINVAL"),
        ({"interface": "pf0", "mib": 3}, "EINVAL"),
        ({"interface": "pf0", "mib": 512}, "EINVAL"),
        ({"interface": "pf0", "what": 1}, "EINVAL"),
    ],
)
def test_what_cannot_be_is_refused(params: dict[str, object], errno_name: str) -> None:
    with Session(parse_lab(lab_text())) as session:
        session.start()
        with pytest.raises(VirtfnError) as refused:
            session.ask(StartCapture.from_params(params))
    assert refused.value.errno_name == errno_name


def test_a_tap_ends_with_its_reader_and_there_are_four_at_most() -> None:
    with Session(parse_lab(lab_text())) as session:
        session.start()
        readers = [session.ask(StartCapture("pf0/vf0")) for _ in range(4)]
        with pytest.raises(VirtfnError) as refused:
            session.ask(StartCapture("pf0/vf0"))
        assert refused.value.errno_name == "EBUSY"
        for handed in readers:
            handed.close()
        session.run_until(lambda: not _open_taps(session), 10**13)
        assert not _open_taps(session)
        session.ask(StartCapture("pf0/vf0")).close()


@pytest.mark.parametrize("fails", ["socketpair", "dup"])
def test_a_capture_without_descriptors_leaves_no_tap(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with Session(parse_lab(lab_text())) as session:
        session.start()
        for _ in range(5):  # more than there can be
            with monkeypatch.context() as without:
                without.setattr(captures.socket if fails == "socketpair" else captures.os, fails, refuse)
                with pytest.raises(VirtfnError, match="Too many open files") as refused:
                    session.ask(StartCapture("pf0/vf0"))
            assert refused.value.errno_name == "EMFILE"
            assert not _open_taps(session)
        session.ask(StartCapture("pf0/vf0")).close()


def _open_taps(session: Session) -> bool:
    card = cast(Any, session.machine.pfs[0].nic)
    return bool(card._taps)


def test_descriptors_reach_the_other_side_of_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ours, theirs = os.pipe()
    made = Control("handing", {"give": lambda params: Handed({"fine": True}, [theirs])})
    done = threading.Event()
    thread = threading.Thread(target=lambda: [made.serve(0.01) for _ in iter(done.is_set, True)])
    thread.start()
    try:
        handed = ask_handed("give", {}, "handing")
        assert handed.document == {"fine": True}
        os.write(handed.descriptors[0], b"x")
        assert os.read(ours, 1) == b"x"
        handed.close()
        assert os.read(ours, 1) == b""  # nobody else has it
    finally:
        done.set()
        thread.join()
        made.close()
        os.close(ours)


def test_a_frame_of_a_capture_is_explained_as_the_card_decided(
    captured: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    path, _, card = captured
    frames = read_capture(path)
    number = next(i for i in range(len(frames)) if frames.frame(i)[0] & 1 == 0)
    told = explain(cast(Any, card), "pf0/vf0", frame_of_capture(path, number + 1))
    assert told["outcome"] in ("forwarded", "dropped")
    assert all(step["words"] for step in told["steps"])
    spoofed = explain(cast(Any, card), "pf0/vf0", bytes.fromhex("020000000011" + "0e0000000001" + "88b5") + bytes(50))
    assert spoofed["dropped"] == [{"interface": "pf0/vf0", "reason": "mac-spoof"}]
    assert spoofed["steps"][-1]["register"].startswith("DTXSWC.MACAS")


def test_states_and_frames_that_are_none(captured: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    path, _, card = captured
    for wrong in ("", "xyz", "123", "00" * 20000):
        with pytest.raises(StateError):
            frame_of_hex(wrong)
    with pytest.raises(CaptureError, match="has no frame 100000"):
        frame_of_capture(path, 100000)
    for text in ("", "[1]", '{"lab": 3}', "\x00\xff"):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(StateError, match="is no state of a card"):
            load_state(tmp_path / "state.json")
    with pytest.raises(StateError, match="cannot be read"):
        load_state(tmp_path / "none.json")
    for source in ("pf1", "pf0/vf0/x", "pf0/eth0"):
        with pytest.raises(StateError):
            explain(cast(Any, card), source, bytes(60))
    for wrong in (
        {"registers": dict(card["state"]["registers"], VMOLR=[1])},
        {"storm": None},
        {"storm": {}},
        {"storm": dict(card["state"]["storm"], broadcasts=float("inf"))},
    ):
        with pytest.raises(StateError, match="makes no sense"):
            explain(cast(Any, dict(card, state=dict(card["state"], **wrong))), "pf0/vf0", bytes(60))
    with pytest.raises(VirtfnError, match="there is no vf7"):
        explain(cast(Any, card), "pf0/vf7", bytes(60))


@pytest.mark.parametrize("more", [False, True])
def test_a_state_without_an_end_is_not_read_to_it(more: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of /dev/zero: nobody knows its size before."""
    monkeypatch.setattr("virtfn.api.explain._MAX_STATE", 1000)
    text = json.dumps({"lab": "rig", "pf": "pf0", "model": "82576", "vfs": 1, "state": {}})
    come, go = os.pipe()
    with open(go, "w") as file:
        file.write(text.ljust(1001 if more else 1000))
    with open(come):
        if more:
            with pytest.raises(StateError, match="is no state of a card"):
                load_state(Path(f"/proc/self/fd/{come}"))
        else:
            assert load_state(Path(f"/proc/self/fd/{come}"))["lab"] == "rig"


def test_ctrl_c_ends_a_capture_that_takes_its_time_to_say_what_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = {"name": "pf0", "description": "", "numbers": [0]}
    document = {"lab": "x", "interfaces": [face], "wanted": [], "names": [], "reasons": [], "bytes": 0, "epoch_ps": 0}
    handed = SimpleNamespace(document=document, descriptors=(0, 0))
    slow = SimpleNamespace(lost=lambda number: time.sleep(0.1) or 7)
    monkeypatch.setattr(capture, "TapReader", lambda *_: nullcontext(slow))
    monkeypatch.setattr(capture._Copier, "run", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with ended_by_signals():  # as the command line does
        assert record(cast(Handed, handed), tmp_path / "x.pcapng")["lost"] == 7
