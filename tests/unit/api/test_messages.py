"""What mailboxes say, kept for a while and read by sequence number; in a session, by request."""

from __future__ import annotations

import time

import pytest

from unit.rig import lab_text
from virtfn.api.lab import parse_lab
from virtfn.api.messages import KEPT, Messages
from virtfn.api.session import Session
from virtfn.api.session.mailbox import ReadMailbox
from virtfn.hw.types import Rid
from virtfn.machine.clock import WallClock
from virtfn.machine.ports import VirtfnError


def test_the_latest_are_kept_and_losses_are_told() -> None:
    messages = Messages(WallClock())
    assert messages.since(5, 10) == ([], 0, 0)
    for k in range(KEPT + 3):
        messages.note(Rid(0x180), k % 2 == 0, [k], f"message {k}")
    found, lost, following = messages.since(0, 2)
    assert ([message.text for message in found], lost, following) == (["message 3", "message 4"], 3, 5)
    found, lost, following = messages.since(following, 1000)
    assert (len(found), lost, following) == (KEPT - 2, 0, KEPT + 3)
    assert messages.since(following, 10) == ([], 0, following)
    assert messages.since(1 << 62, 10) == ([], 0, following)


def test_a_session_tells_what_vfs_and_pfs_said() -> None:
    with Session(parse_lab(lab_text())) as session:
        session.start()
        read = session.ask(ReadMailbox())
        texts = [(message["rid"], message["to_pf"], message["text"]) for message in read["messages"]]
        rid = texts[0][0]
        assert texts[0] == (rid, True, "RESET")
        assert texts[1][:2] == (rid, False)
        assert texts[1][2].startswith("RESET (ACK")
        assert abs(read["messages"][0]["timestamp"]["seconds"] - time.time()) < 120
        assert session.ask(ReadMailbox(read["next"]))["messages"] == []


def test_what_no_request_is_is_refused() -> None:
    for params in ({"since": -1}, {"since": "0"}, {"from": 1}):
        with pytest.raises(VirtfnError) as refused:
            ReadMailbox.from_params(params)
        assert refused.value.errno_name == "EINVAL"
