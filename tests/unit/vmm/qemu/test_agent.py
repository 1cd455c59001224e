import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu.agent import MAX_NOISE, Agent, Outcome, agent_script
from virtfn.vmm.qemu.wait import Watch


def pair() -> tuple[Agent, list[bytes]]:
    sent: list[bytes] = []
    return Agent(sent.append, Watch()), sent


def name_of(line: bytes) -> bytes:
    return line.split(b" ")[0]


@given(st.lists(st.integers(1, 9)), st.binary(max_size=60))
def test_answers_survive_any_cut_and_any_content(cuts: list[int], output: bytes) -> None:
    agent, sent = pair()
    first, second = agent.start("one"), agent.start("two")
    stream = b"[ 1.0] noise\nready to\xff\n"
    for line, status in zip(reversed(sent), (7, 0), strict=True):
        stream += b"%s %d %d\n%s" % (name_of(line), status, len(output), output)
    for cut in cuts:
        agent.feed(stream[:cut])
        stream = stream[cut:]
    agent.feed(stream)
    said = output.decode("utf-8", "replace")
    assert (second.outcome, first.outcome) == (Outcome(7, said), Outcome(0, said))


def test_a_restart_loses_what_was_under_way() -> None:
    agent, _ = pair()
    assert not agent.ready
    job = agent.start("sleep")
    agent.feed(b"already\nnot ready\n")
    assert not agent.ready
    agent.feed(b"\x00ready\r\n")
    assert agent.ready
    with pytest.raises(VirtfnError, match="restarted during 'sleep'"):
        agent.wait(job)


@pytest.mark.parametrize("announced", [b"", b"%s 0 100\nhalf of it"])
def test_the_end_of_a_guest_loses_what_was_under_way_for_good(announced: bytes) -> None:
    agent, sent = pair()
    agent.feed(b"ready\n")
    job = agent.start("sleep")
    agent.feed(announced % name_of(sent[0]) if announced else b"")
    agent.end()
    agent.feed(b"ready\n")
    assert (job.done, job.outcome, agent.ready) == (True, None, False)
    with pytest.raises(VirtfnError, match="ended during 'sleep'"):
        agent.wait(job)
    with pytest.raises(VirtfnError, match="has ended") as refused:
        agent.start("true")
    assert refused.value.errno_name == "ENODEV"


def test_what_a_hostile_guest_sends_changes_nothing() -> None:
    agent, sent = pair()
    job = agent.start("id")
    name = name_of(sent[0])
    for junk in (
        b"0123456789abcdef 0 5\n",
        name + b" 0 9999999\n",
        name + b" -1 0\n",
        name + b" 0\n",
        b"\n",
        b"\x00" * 99,
    ):
        agent.feed(junk)
    agent.feed(b"x" * (3 * MAX_NOISE))
    assert len(agent._received) <= MAX_NOISE
    assert not job.done
    with pytest.raises(VirtfnError, match="the end of 'id' did not come within"):
        agent.wait(job, timeout_s=0.01)


def test_a_command_too_long_for_a_terminal_line() -> None:
    agent, sent = pair()
    with pytest.raises(VirtfnError, match="the agent takes 4000"):
        agent.run("x" * 4000)
    assert sent == []


class Guest:
    """The guest's script, run here on a pseudo-terminal: the nearest thing to a serial port."""

    def __init__(self, folder: Path) -> None:
        self.ours, theirs = pty.openpty()
        script = folder / "agent.sh"
        script.write_bytes(agent_script())
        shell = ["busybox", "sh"] if shutil.which("busybox") else ["sh"]
        port = os.ttyname(theirs)
        self.child = subprocess.Popen([*shell, str(script), port, str(folder / "work")], start_new_session=True)
        self.agent = Agent(self.write, Watch())
        self.agent_thread = threading.Thread(target=self.read)
        self.agent_thread.start()
        self.theirs = theirs

    def write(self, line: bytes) -> None:
        os.write(self.ours, line)

    def read(self) -> None:
        while True:
            try:
                received = os.read(self.ours, 65536)
            except OSError:
                return
            self.agent.feed(received)

    def close(self) -> None:
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        os.close(self.theirs)
        self.agent_thread.join()
        os.close(self.ours)


def test_the_guests_script_runs_commands() -> None:
    with tempfile.TemporaryDirectory() as folder:
        guest = Guest(Path(folder))
        try:
            agent = guest.agent
            agent.wait_ready(timeout_s=10)
            assert agent.run("echo out; echo err >&2; exit 3") == Outcome(3, "out\nerr\n")
            assert agent.run("true") == Outcome(0, "")
            assert (
                agent.run("printf '%s\\n' 'a\\tb' \"é \"'%'\necho \"  two  lines\"").output
                == "a\\tb\né %\n  two  lines\n"
            )
            slow = agent.start("sleep 0.2; echo slow")
            left = agent.run("(sleep 30; echo never) & echo left")
            assert left == Outcome(0, "left\n")
            assert not slow.done
            assert agent.wait(slow) == Outcome(0, "slow\n")
            long = agent.run("yes | head -c 3000000")
            assert len(long.output) == 1 << 20
            assert re.fullmatch("(y\n)+", long.output)
            assert agent.run("cat; echo at end of input").output == "at end of input\n"
        finally:
            guest.close()
