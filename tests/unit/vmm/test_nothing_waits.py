"""docs/reference/waits.md names every call on what others hold; and those calls are looked at as they are made."""

from __future__ import annotations

import ast
import fcntl
import os
import re
import select
import socket
import types
from pathlib import Path

import pytest

from unit.vmm.vfio_user.peer import TRIGGER_FD, Board, Peer, memory_file
from unit.waits import watching
from virtfn.vmm.vfio_user import Server

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src/virtfn"
WHERE = ("vmm/*.py", "vmm/vfio_user/*.py", "vmm/vhost_user/*.py", "vmm/uplink/*.py", "devices/virtio/*.py",
         "kernels/virtio/*.py", "machine/memory.py", "kernels/posix.py", "api/control.py",
         "api/session/*.py")  # fmt: skip
QEMU = ("loop", "launch", "console", "agent", "monitor", "vm", "wait")
HOLDER = r"\w*(sock|socket|peer|probe|connection|listening|listener|door|epoll|poll|selector|thread|child|ended)"
CALL = re.compile(
    r"os\.(open|close|p?read|readv|p?write|writev|fstat|fstatvfs|ftruncate|readlink|stat|chmod|unlink|eventfd_\w+)"
    r"|fcntl\.\w+|mmap\.mmap|_libc\.(mmap|munmap|madvise|syscall)|_(ppoll|recv|recvmsg|send|syscall|epoll_wait)"
    rf"|(.*\.)?{HOLDER}(\[.*\])?\.(recv\w*|send\w*|accept|connect|shutdown|close|poll|select|join|wait)|.*\.ended\.wait|answer\.result"
)


def calls() -> set[tuple[str, str]]:
    """Find the calls, as (file, call)."""
    files = [path for pattern in WHERE for path in SOURCE.glob(pattern)]
    files += [SOURCE / f"vmm/qemu/{name}.py" for name in QEMU]
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and CALL.fullmatch(called := ast.unparse(node.func)):
                found.add((str(path.relative_to(SOURCE)), called.removeprefix("self.")))
    return found


def test_the_list_is_whole():
    listed = set()
    for line in (ROOT / "docs/reference/waits.md").read_text(encoding="utf-8").splitlines():
        if row := re.fullmatch(r"\| `(.+?)` \| (`.+?`) \| (.+) \|", line):
            listed |= {(row[1], name) for name in re.findall(r"`(.+?)`", row[2])}
    assert not calls() - listed, "calls that may wait, and are not in the list"
    assert not listed - calls(), "calls in the list that are no more"


def test_kernels_ask_sockets_for_no_patience():
    source = (SOURCE / "kernels/posix.py").read_text(encoding="utf-8")
    asked = re.findall(r"return _(recv|send)\((.*)\)|got = _(recvmsg)\((.*)\)", source)
    assert len(asked) == 3
    assert all("_MSG_DONTWAIT" in "".join(call) for call in asked)


def test_a_session_is_looked_at(tmp_path):
    board, fd, event, ends = Board(), memory_file(4096), os.eventfd(0), os.pipe()
    with watching() as watched:
        with Server(tmp_path / "socket", board) as server, Peer(server) as peer:
            peer.map(0, 4096, fd)
            peer.set_irqs(TRIGGER_FD, 2, 0, 1, fds=[event])
            peer.set_irqs(0x21, 2, 0, 1)
            peer.unmap(0, 4096)
            with Peer(server, hello=False):
                pass
        assert watched.seen >= {"recvmsg", "sendmsg", "accept", "epoll.poll", "fcntl", "mmap", "fstat", "fstatvfs",
                                "close of what came", "recv alone"}  # fmt: skip
    board.close()
    for each in (fd, event, *ends):
        os.close(each)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("a.recv(1)", "recv"),
        ("a.setblocking(False); a.recv(1)", "recv alone"),
        ("a.send(b'x')", "send"),
        ("select.poll().poll(1)", "poll.poll"),
        ("os.fstat(came)", "fstat"),
        ("os.write(came, b'x')", "write"),
        ("fcntl.fcntl(came, fcntl.F_SETFL, 0)", "fcntl"),
        ("os.close(came)", "close of what came"),
    ],
)
def test_a_call_that_could_wait_is_found(call, name):
    a, b = socket.socketpair()
    came, other = os.pipe()
    came, other = other, came
    b.send(b"x")

    def make() -> None:
        module = types.ModuleType("virtfn.made_up")
        module.__dict__.update(a=a, came=came, os=os, select=select, fcntl=fcntl)
        with watching() as watched:
            watched.came.add(came)
            exec(call, module.__dict__)

    with pytest.raises(AssertionError, match=name):
        make()
    os.close(other)
    if "close" not in name:
        os.close(came)
    a.close()
    b.close()
