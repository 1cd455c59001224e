"""Labs whose QEMUs somebody else starts: sockets that stay, and clients that come, go, and come again."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from unit.vmm.vfio_user.peer import Peer, ToldError, memory_file, settle
from virtfn.api.boot import machine_parts
from virtfn.api.image import Platform
from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.api.qemuargs import libvirt_domain, qemu_command
from virtfn.api.running import lab_document
from virtfn.api.served import ServedGuests, ServiceDocument, serve_lab, sockets_folder
from virtfn.api.session import Event, GuestConnected, GuestDisconnected, RunInGuest, Session, VfsRefused
from virtfn.api.session.changes import ApplyLab, DetachGuest
from virtfn.machine.clock import WallClock
from virtfn.machine.memory import CHUNK
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.hostcard import Member
from virtfn.vmm.qemu import Acceleration, Function, Qemu
from virtfn.vmm.qemu.image import Image
from virtfn.vmm.qemu.vm import QemuVm
from virtfn.vmm.vfio_user.messages import IRQ_INFO, Command
from virtfn.vmm.vfio_user.regions import IrqIndex
from virtfn.vmm.world import World

LAB = """
name: served
pfs: [{name: pf0, sr-iov: {total-vfs: 2}}, {name: pf1}]
guests:
  - {name: a, vmm: qemu, nic: {pf: pf0, vf: 0}}
  - {name: b, vmm: qemu, nic: {pf: pf0, vf: 1}}
  - {name: c, vmm: qemu, nic: {pf: pf0, io: split}}
  - {name: d, vmm: qemu, nic: {pf: pf0, io: direct}}
  - {name: e, vmm: qemu, nic: {pf: pf1, io: passthrough}}
workload: {kind: none}
"""
HOST = """
name: hosts
pfs: [{name: pf0}]
guests: [{name: h, vmm: qemu, nic: {pf: pf0, io: host}}]
workload: {kind: none}
"""
CONFIG, SRIOV = 7, 0x160
Call = Callable[..., tuple[int, str, str]]


class Rig:
    """A lab that is served in a folder."""

    def __init__(self, folder: Path, lab: str = LAB) -> None:
        self.machine = Machine(parse_lab(lab), WallClock())
        self.world = World(self.machine.host.clock)
        self.told: list[Event] = []
        self.served = ServedGuests(self.machine, folder, self.world, self.told.append)
        self.machine.start()
        self.served.start()

    def server(self, name: str) -> Any:
        [server] = [f.server for g in self.served.guests if g.lab.name == name for f in g.vm.functions.values()]
        return server

    def plug(self, name: str, memory: int) -> Peer:
        """Do as QEMU does when it starts, and its guest when it boots."""
        peer = Peer(self.server(name))
        for fd in peer.region_info(0, 64)[1]:
            os.close(fd)
        peer.map(0x100000, CHUNK, memory, offset=0x100000)
        peer.call(Command.DEVICE_RESET)
        peer.write(CONFIG, 4, (6).to_bytes(2, "little"))
        return peer

    def turns(self) -> list[Event]:
        """Let the world turn, and take what was told."""
        for _ in range(8):
            self.world.step()
        told, self.told[:] = list(self.told), []
        return told

    def close(self) -> None:
        self.served.close()
        self.machine.close()
        self.world.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[int]:
    fd = memory_file(4 * CHUNK)
    yield fd
    os.close(fd)


def test_each_guest_has_a_socket_of_this_users_alone(rig: Rig, tmp_path: Path) -> None:
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}.sock" for name in "abcde"]
    for file in tmp_path.iterdir():
        assert stat.S_ISSOCK(file.stat().st_mode)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    document = rig.served.document()
    assert [(entry["guest"], entry["io"], entry["protocol"]) for entry in document["sockets"]] == [
        ("a", "sriov", "vfio-user"), ("b", "sriov", "vfio-user"), ("c", "split", "vhost-user"),
        ("d", "direct", "vfio-user"), ("e", "passthrough", "vfio-user"),
    ]  # fmt: skip
    assert document["sockets"][1]["path"] == str(tmp_path / "b.sock")
    assert rig.served.words() == "waiting for a, b, c, d, e"
    rig.served.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_qemu_comes_is_killed_and_comes_again(rig: Rig, memory: int) -> None:
    identities = set()
    for _ in range(3):
        peer = rig.plug("a", memory)
        assert rig.turns() == [GuestConnected("a")]
        assert rig.served.words() == "a connected; waiting for b, c, d, e"
        identities.add(peer.read(CONFIG, 0, 4))
        with pytest.raises(ToldError):  # what each QEMU asks
            peer.call(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, IrqIndex.ERR, 0))
        peer.sock.close()  # as a kill does it
        settle(rig.server("a"))
        assert rig.turns() == [GuestDisconnected("a", "")]
        assert len(rig.served.guests[0].vm.functions) == 1
    assert identities == {b"\x86\x80\xca\x10"}


def test_the_second_qemu_at_a_socket_is_turned_away(rig: Rig, memory: int) -> None:
    first = rig.plug("b", memory)
    other = Peer(rig.server("b"), hello=False)
    settle(rig.server("b"))
    assert rig.server("b").counters["turned-away"] == 1
    other.sock.close()
    assert rig.turns() == [GuestConnected("b")]
    first.sock.close()


def test_memory_beyond_the_labs_is_refused_and_said(rig: Rig) -> None:
    huge = memory_file(4 << 30)
    peer = Peer(rig.server("e"))
    with pytest.raises(ToldError):
        peer.map(0, 4 << 30, huge)
    rig.turns()
    peer.sock.close()
    settle(rig.server("e"))
    [gone] = rig.turns()
    assert isinstance(gone, GuestDisconnected)
    assert gone.refusal
    os.close(huge)
    peer = Peer(rig.server("e"))
    rig.turns()
    peer.sock.close()
    settle(rig.server("e"))
    assert rig.turns() == [GuestDisconnected("e", "")], "of each client its own"


def test_what_a_front_end_is_refused_is_said(rig: Rig, tmp_path: Path) -> None:
    said = []
    for request in (200, 1):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "c.sock"))
            assert rig.turns() == [GuestConnected("c")]
            client.send(struct.pack("=III", request, 1, 0))
            told = rig.turns()
        [gone] = told or rig.turns()
        assert isinstance(gone, GuestDisconnected)
        said.append(gone.refusal)
    assert said == ["unknown-request", ""]


def test_front_ends_come_and_go(rig: Rig, tmp_path: Path) -> None:
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "c.sock"))
            assert rig.turns() == [GuestConnected("c")]
        assert rig.turns() == [GuestDisconnected("c", "")]


# The whole service.


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run" / "virtfn"


def test_a_lab_is_served_until_a_signal_and_leaves_nothing(runtime: Path) -> None:
    seen: list[ServiceDocument] = []

    def ready(document: ServiceDocument) -> None:
        assert all(Path(entry["path"]).is_socket() for entry in document["sockets"])
        assert (runtime / "served.sock").is_socket()  # others can ask
        seen.append(document)
        raise KeyboardInterrupt

    serve_lab(parse_lab(LAB), ready=ready)
    assert seen[0]["sockets"][0]["path"] == str(runtime / "served" / "served" / "a.sock")
    assert list(runtime.iterdir()) == []


def test_functions_of_others_qemus_stay_and_policy_changes(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    with Session(parse_lab(LAB), standing=True, sockets=runtime) as session:
        session.start()
        with pytest.raises(VirtfnError, match="the QEMU of guest a is started elsewhere"):
            session.ask(DetachGuest("a"))
        with pytest.raises(VirtfnError, match="none under QEMU, or not there yet"):
            session.ask(RunInGuest("a", "true"))
        lab = lab_document(session.lab)
        lab["pfs"][0]["sr-iov"]["vfs"] = [{"id": 0, "vlan-id": 7}]
        session.ask(ApplyLab(lab))
        pf = session.machine.pfs[0]
        assert pf.driver.policy(0).vlan == 7
        session.stop()


def test_sockets_where_the_user_wants_them(runtime: Path, tmp_path: Path) -> None:
    def ready(document: ServiceDocument) -> None:
        assert document["sockets"][0]["path"] == str(tmp_path / "mine" / "a.sock")
        raise KeyboardInterrupt

    serve_lab(parse_lab(LAB), sockets=tmp_path / "mine", ready=ready)
    assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "file").touch()
    for folder, said in (("file", "File exists"), ("x" * 100, "give a shorter folder"), ("no/folder", "No such file")):
        with pytest.raises(VirtfnError, match=said):
            serve_lab(parse_lab(LAB), sockets=tmp_path / folder, ready=ready)


def test_what_is_at_a_path_already_is_not_replaced(runtime: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "b.sock"))
        other.listen()
        with pytest.raises(VirtfnError, match=r"another server listens at .*b\.sock"):
            serve_lab(parse_lab(LAB), sockets=tmp_path, ready=lambda _: pytest.fail("is served"))
        assert not (tmp_path / "a.sock").exists()
    (tmp_path / "b.sock").unlink()
    (tmp_path / "c.sock").write_text("mine")
    with pytest.raises(VirtfnError, match="exists and is not a socket"):
        serve_lab(parse_lab(LAB), sockets=tmp_path, ready=lambda _: pytest.fail("is served"))
    assert (tmp_path / "c.sock").read_text() == "mine"


def test_a_lab_without_guests_under_qemu_is_not_served(runtime: Path) -> None:
    embedded = "name: l\npfs: [{name: p, sr-iov: {total-vfs: 2}}]\nguests:\n"
    embedded += "".join(f"  - {{name: g{n}, nic: {{pf: p, vf: {n}}}}}\n" for n in (0, 1)) + "workload: {kind: ping}\n"
    with pytest.raises(VirtfnError, match="no guest with vmm: qemu"):
        serve_lab(parse_lab(embedded), ready=lambda _: pytest.fail("is served"))


# A guest that is a host, and makes VFs of a whole card.


class Qmp(threading.Thread):
    """The monitor of a QEMU that is played here, at a path: notes what it is told, and reads 0 from each port.

    greets: whether it says that it is there. heard: commands, those of the human monitor as they are.
    """

    def __init__(self, path: Path, *, greets: bool = True) -> None:
        super().__init__(daemon=True)
        self.heard: list[str] = []
        self.greets = greets
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self.start()

    def run(self) -> None:
        """Serve one connection to its end."""
        sock, _ = self._listening.accept()
        with sock, self._listening:
            if self.greets:
                self._say(sock, {"QMP": {"version": {}, "capabilities": []}})
            text = ""
            while received := sock.recv(4096):
                text += received.decode()
                while text := text.lstrip():  # nothing but braces parts one from the next
                    try:
                        request, end = json.JSONDecoder().raw_decode(text)
                    except ValueError:
                        break
                    text = text[end:]
                    self._say(sock, {"return": self._answer(request), "id": request.get("id")})

    def _answer(self, request: dict[str, Any]) -> object:
        line = request.get("arguments", {}).get("command-line", request["execute"])
        self.heard.append(line)
        if line == "query-status":
            return {"running": True, "status": "running"}
        return "portl[0x0cf8] = 0x00000000" if line.startswith("i/") else "" if line.startswith("o/") else {}

    @staticmethod
    def _say(sock: socket.socket, message: dict[str, object]) -> None:
        sock.sendall(json.dumps(message).encode() + b"\r\n")


class HostRig(Rig):
    """A host that is served, and the QEMU that comes; enable: what its guest does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, HOST)
        [self.guest] = self.served.guests
        self.members = [served for served in self.guest.vm.functions.values() if isinstance(served, Member)]
        self.path = folder / "h.qmp"

    def come(self, members: int = 9) -> list[Peer]:
        """Plug in VFs and the PF, as QEMU does when it starts, and reset them; the guest lets memory be mapped."""
        peers = [Peer(member.server) for member in self.members[9 - members :]]
        for peer in peers:
            peer.call(Command.DEVICE_RESET)
        return peers

    def shown(self, pf: Peer) -> int:
        """Return what the guest finds where SR-IOV is."""
        return int.from_bytes(pf.read(CONFIG, SRIOV, 2), "little")

    def enable(self, pf: Peer) -> None:
        """Place VFs and enable two."""
        for at, value, size in (
            (8, 0x10, 2),
            (0x24, 0xFD82_4000, 4),
            (0x30, 0xFD84_4000, 4),
            (0x10, 2, 2),
            (8, 0x19, 2),
        ):
            pf.write(CONFIG, SRIOV + at, value.to_bytes(size, "little"))

    def until(self, done: Callable[[], object]) -> list[Event]:
        """Let the world turn until something is so; return what was told."""
        told, end = [], time.monotonic() + 20
        while not done():
            assert time.monotonic() < end
            told += self.turns()
        return told + self.turns()

    def go(self, peers: list[Peer]) -> None:
        """End QEMU, as a kill does."""
        for peer in peers:
            peer.sock.close()
        for member in self.members:
            settle(member.server)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostRig]:
    made = HostRig(tmp_path)
    yield made
    made.close()


def test_the_monitor_of_each_qemu_that_comes_is_called_and_let_go(host: HostRig) -> None:
    for _ in range(2):
        qmp = Qmp(host.path)
        *vfs, pf = peers = host.come()
        assert host.turns() == [GuestConnected("h")]
        assert host.shown(pf) == 0x10
        assert vfs[0].read(CONFIG, 0, 4) == b"\xff" * 4
        host.enable(pf)
        told = host.until(lambda q=qmp: "cont" in q.heard)  # type: ignore[misc]
        assert told == []
        first = qmp.heard.index("stop")
        assert qmp.heard[:first] == ["qmp_capabilities", "query-status"]
        assert "o/w 0xcfc 0xfd824000" in qmp.heard
        host.until(lambda: host.guest.without_vfs)
        assert "no VF hears of it" in host.guest.without_vfs, "this QEMU does nothing"
        assert host.machine.pfs[0].nic.vfs == 2
        host.go(peers)
        [gone] = host.turns()
        assert isinstance(gone, GuestDisconnected)
        assert host.guest.without_vfs == ""
        qmp.join(10)
        assert not qmp.is_alive(), "it was left"
        assert host.machine.pfs[0].nic.vfs == 0
        host.path.unlink()


def test_without_a_monitor_the_card_is_an_ordinary_one_and_it_is_said_why(host: HostRig) -> None:
    *_, pf = peers = host.come()
    connected, refused = host.turns()
    why = f"no monitor of its QEMU listens at {host.path}: No such file or directory; start it by the line of virtfn "
    assert (connected, refused) == (GuestConnected("h"), VfsRefused("h", f"{why}qemu-args"))
    assert host.served.words() == f"h connected; h has no VFs: {why}qemu-args"
    assert host.shown(pf) == 0
    assert pf.read(CONFIG, 0, 2) == b"\x86\x80"
    assert pf.read(CONFIG, 0x70, 1) == b"\x11", "MSI-X"
    host.enable(pf)
    assert host.machine.pfs[0].nic.vfs == 0
    assert host.turns() == []
    host.go(peers)
    assert host.turns() == [GuestDisconnected("h", f"{why}qemu-args")]
    Qmp(host.path)
    *_, pf = peers = host.come()
    assert host.turns() == [GuestConnected("h")], "the next has one"
    assert host.shown(pf) == 0x10
    host.go(peers)


def test_the_monitor_of_another_process_is_not_called(host: HostRig) -> None:
    line = "import socket, sys; s = socket.socket(1); s.bind(sys.argv[1]); s.listen(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", line, str(host.path)], stdin=-1, stdout=-1) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            *_, pf = peers = host.come()
            assert host.guest.vm.without_vfs.startswith(f"who listens at {host.path} is not its QEMU")
            assert host.shown(pf) == 0
            host.go(peers)
        finally:
            other.kill()


def test_a_qemu_without_vfs_plugged_in_has_none(host: HostRig) -> None:
    Qmp(host.path)
    *_, pf = peers = host.come(8)
    assert host.guest.vm.without_vfs.startswith("its QEMU has not all VFs plugged in")
    assert host.shown(pf) == 0
    host.go(peers)


def test_a_monitor_that_talks_to_somebody_else_is_waited_for_by_nobody(
    host: HostRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtfn.vmm.qemu.monitor._GREETING_S", 0.5)
    Qmp(host.path, greets=False)
    *_, pf = peers = host.come()
    assert host.turns() == [GuestConnected("h")]
    host.enable(pf)
    told = host.until(lambda: host.guest.without_vfs)
    assert told == [VfsRefused("h", host.guest.without_vfs)]
    assert "has not greeted within 0.5 s" in host.guest.without_vfs
    host.go(peers)


def test_what_a_killed_qemu_leaves_at_the_monitors_path_goes_and_nothing_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "h.qmp"))
    rig = HostRig(tmp_path)
    assert not rig.path.exists()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(rig.path))
    rig.served.stop()
    assert list(tmp_path.iterdir()) == []
    rig.close()
    rig.path.write_text("mine")
    with pytest.raises(VirtfnError, match=r"h\.qmp exists and is not a socket"):
        HostRig(tmp_path)
    assert rig.path.read_text() == "mine"


def test_the_line_for_a_host_has_the_machine_that_virtfn_starts_itself(
    host: HostRig, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtfn.vmm.qemu.hostprobe.probe_host_cards", lambda qemu: "")
    lab = parse_lab(HOST)
    command = qemu_command(lab, "h", tmp_path, platform=platform)
    [ours] = lab.guests
    own = machine_parts(ours, platform).argv(platform.qemu, platform.acceleration, qmp=5, console=6, agent=7)
    channel = re.compile(r"-(chardev|serial|qmp|device)|(socket,|chardev:|mon:|\{).*")
    assert [word for word in own if not channel.fullmatch(word)] == [
        word for word in command if not channel.fullmatch(word)
    ]
    pairs = list(itertools.pairwise(command))
    assert ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off") in pairs
    assert ("-chardev", f"socket,id=qmp,path={host.path},server=on,wait=off") in pairs
    assert ("-qmp", "chardev:qmp") in pairs
    printed = [json.loads(word) for option, word in pairs if option == "-device" and word.startswith("{")]
    # As it would be plugged in, at its places and in its order, were QEMU ours.
    plugged: list[Function] = []

    def plug_card(functions: list[Function], *, tick: object) -> int:
        plugged.extend(functions)
        raise VirtfnError("enough")

    document = host.served.document()["sockets"][0]
    pf = host.machine.pfs[0]
    made = SimpleNamespace(name="h", memory_mib=0)
    played = cast(Any, SimpleNamespace(machine=made, folder=tmp_path, plug_card=plug_card))
    vm = QemuVm(host.machine.host, played, lambda: None)
    host.served.stop()
    with pytest.raises(VirtfnError, match="enough"):
        host.machine.iovm.assign_host(pf.found, pf.nic, vm)
    names = ("id", "socket")
    assert [{k: v for k, v in function.device(0).items() if k not in names} for function in plugged] == [
        {k: v for k, v in device.items() if k not in names} for device in printed
    ]
    assert [device["socket"]["path"] for device in printed] == [*document["vfs"], document["path"]]
    assert document["monitor"] == str(host.path)
    domain = ElementTree.fromstring(libvirt_domain(lab, "h", tmp_path, platform=platform))
    words = [e.get("value") for e in domain.findall("{http://libvirt.org/schemas/domain/qemu/1.0}commandline/*")]
    at = command.index("-chardev")
    assert words == command[at : at + len(words)]
    assert words[-1] == json.dumps(printed[-1])


def test_a_qemu_that_cannot_have_a_host_is_refused(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtfn.vmm.qemu.hostprobe.probe_host_cards", lambda qemu: "it does not")
    ways: list[Callable[[], object]] = [
        lambda: qemu_command(parse_lab(HOST), "h", platform=platform),
        lambda: libvirt_domain(parse_lab(HOST), "h", platform=platform),
    ]
    for way in ways:
        with pytest.raises(VirtfnError, match="cannot give a guest VFs to make: it does not") as caught:
            way()
        assert caught.value.errno_name == "EOPNOTSUPP"


# Command lines.


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    for name in ("vmlinuz", "initrd.gz"):
        (tmp_path / name).touch()
    image = Image(tmp_path / "vmlinuz", tmp_path / "initrd.gz", "6.1.0-57-amd64", ())
    return Platform(Qemu(Path("/usr/bin/q"), ("/usr/bin/q",), (11, 1, 0)), image, Acceleration("tcg", ""))


def test_the_command_line_leads_to_the_socket(platform: Platform, runtime: Path) -> None:
    lab = parse_lab(LAB)
    words = qemu_command(lab, "a", Path("/s"), platform=platform)
    device = json.loads(words[-1])
    assert (device["driver"], device["bus"]) == ("vfio-user-pci", "rp0")
    assert device["socket"] == {"type": "unix", "path": "/s/a.sock"}
    assert sockets_folder(lab, None) == runtime / "served" / "served"
    assert str(runtime / "served/served/a.sock") in qemu_command(lab, "a", platform=platform)[-1]
    split = qemu_command(lab, "c", Path("/s"), platform=platform)
    assert "socket,id=nic0-channel,path=/s/c.sock,reconnect-ms=500" in split
    with Machine(lab, WallClock()) as machine:  # the address that the bridge expects
        assert json.loads(split[-1])["mac"] == _mac(machine, "c")
    for name, said in (("x", "no guest called x; there are a, b, c, d, e"),):
        with pytest.raises(VirtfnError, match=said):
            qemu_command(lab, name, platform=platform)


def _mac(machine: Machine, name: str) -> str:
    from virtfn.hw.types import format_mac

    guest = next(guest for guest in machine.lab.guests if guest.name == name)
    return format_mac(machine.wish(machine.pfs[0], guest).mac)


def test_a_domain_for_libvirt(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "d.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    text = LAB.replace("name: a,", "name: a, disk: d.qcow2, memory-mib: 128, cpus: 2, qemu-args: [-usb],")
    lab = parse_lab(text, "lab.yaml", tmp_path)
    domain = ElementTree.fromstring(libvirt_domain(lab, "a", Path("/s"), platform=platform))
    assert domain.findtext("name") == "a"
    assert domain.findtext("memory") == "128"
    assert domain.findtext("vcpu") == "2"
    assert domain.find("memoryBacking/access").get("mode") == "shared"  # type: ignore[union-attr]
    assert domain.find("devices/disk/source").get("file") == str(tmp_path / "d.qcow2")  # type: ignore[union-attr]
    assert domain.find("os/boot").get("dev") == "hd"  # type: ignore[union-attr]
    values = [e.get("value") for e in domain.findall("{http://libvirt.org/schemas/domain/qemu/1.0}commandline/*")]
    assert values[-1] == "-usb"
    assert json.loads(values[3] or "")["socket"]["path"] == "/s/a.sock"
    assert domain.find("devices/iommu") is None
    iommu = parse_lab(LAB.replace("name: a,", "name: a, iommu: translated,"))
    domain = ElementTree.fromstring(libvirt_domain(iommu, "a", Path("/s"), platform=platform))
    assert domain.find("devices/iommu/driver").get("caching_mode") == "on"  # type: ignore[union-attr]
    split = ElementTree.fromstring(libvirt_domain(lab, "c", Path("/s"), platform=platform))
    assert split.find("devices/interface/source").get("path") == "/s/c.sock"  # type: ignore[union-attr]
    assert split.find("os/cmdline").text.startswith("console=ttyS0")  # type: ignore[union-attr]
