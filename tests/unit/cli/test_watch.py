"""`virtfn watch`, `quarantine` and `release` against a lab that lives in another thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from unit.rig import lab_text
from virtfn.api.lab import parse_lab
from virtfn.api.session import Session
from virtfn.machine.clock import S_PS


def test_commands_speak_to_a_lab_that_runs(virtfn: Callable[..., tuple[int, str, str]]) -> None:
    ended, ready = threading.Event(), threading.Event()

    def live() -> None:
        with Session(parse_lab(lab_text(workload="{kind: pairs, frames: 500}")), controlled=True) as session:
            session.start()
            ready.set()
            session.run_until(ended.is_set, 60 * S_PS)
            session.stop()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert ready.wait(60)
        code, out, _ = virtfn("quarantine", "pf0/vf1", "--why", "it smells", "--json", "-")
        assert code == 0
        assert (json.loads(out)["state"], json.loads(out)["why"]) == ("quarantined", "it smells")
        code, out, _ = virtfn("watch")
        assert code == 0
        assert "pf0/vf1 (0000:02:10.2) of b is quarantined: it smells" in out
        assert "spoof" in out
        assert virtfn("quarantine", "pf0/vf1")[0] == 1
        code, out, _ = virtfn("release", "pf0/vf1", "--lab", "rig")
        assert (code, out) == (0, "pf0/vf1 (0000:02:10.2) of b is assigned\n")
        code, _, err = virtfn("release", "pf0/vf1")
        assert (code, err.count("\n"), "EINVAL" in err) == (1, 1, True)
        code, _, err = virtfn("watch", "pf7")
        assert (code, "no PF is named pf7" in err, "ENODEV" in err) == (1, True, True)
        assert len(json.loads(virtfn("watch", "pf0", "--json", "-")[1])) == 4
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("place", ["pf0", "pf0/1", "pf0/vf", "pf0/vf1x", "/vf1", "pf0/vf-1", "pf0/vf١"])
def test_a_vf_is_named_as_everywhere(virtfn: Callable[..., tuple[int, str, str]], place: str) -> None:
    code, _, err = virtfn("quarantine", place)
    assert (code, err.count("\n"), "is no VF like pf0/vf3" in err) == (2, 1, True)
