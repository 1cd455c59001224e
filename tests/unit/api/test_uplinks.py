"""Labs whose wire leads outside: what peers at a stream socket see of guests, and what runs make of it."""

from __future__ import annotations

import socket
import threading

import dpkt
import pytest

from unit.rig import Rig, frame, lab_text, send
from unit.vmm.uplink.test_stream import OUTSIDE, Line, Peer
from virtfn.api.lab import LabError, parse_lab
from virtfn.api.machine import Machine
from virtfn.api.report import Verdict, verdict
from virtfn.api.run import run_lab
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.machine.clock import VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.pump import Pump
from virtfn.vmm.uplink import Wire, make_cable

OUTSIDE_MAC = OUTSIDE.to_bytes(6, "little")
US, GUEST = socket.inet_aton("10.0.0.9"), socket.inet_aton("10.0.0.1")


def wired(uplink: str, workload: str = "{kind: pairs, frames: 300}") -> str:
    return lab_text(workload=workload).replace("model: 82576", f"model: 82576, uplink: '{uplink}'")


def engine_of(line: Line, kind: str = "ping", frames: int = 1) -> Engine:
    rig = line.rig
    runs = rig.machine.guests_of(rig.pf)
    stations = [Station(run.guest.nics[0].driver.row, run.guest.nics[0].driver.mac) for run in runs]
    workload = Workload(kind, stations, frames=frames, length=98)
    return Engine(rig.machine.host, rig.nic, [run.guest for run in runs], workload, wire=line.wire)


@pytest.fixture
def line(tmp_path):
    with Rig() as rig:
        made = Line(rig, tmp_path / "wire")
        yield made
        made.wire.close()
        made.peer.sock.close()


def answer(engine: Engine, peer: Peer) -> dpkt.ethernet.Ethernet:
    """Let the guests run until one answers the peer."""
    for _ in range(50):
        engine.step()
        for body in peer.take():
            if body[:6] == OUTSIDE_MAC:
                return dpkt.ethernet.Ethernet(body)
    raise AssertionError("no guest answers")


def test_a_guest_answers_pings_from_outside(line):
    engine = engine_of(line)
    assert engine.run()
    arp = dpkt.arp.ARP(sha=OUTSIDE_MAC, spa=US, tpa=GUEST)
    line.peer.send(bytes(dpkt.ethernet.Ethernet(src=OUTSIDE_MAC, dst=b"\xff" * 6, type=0x0806, data=bytes(arp))))
    mac = answer(engine, line.peer).data.sha
    assert mac == int(line.rig.driver(0).mac).to_bytes(6, "little")
    for size in (1, 56, 1400):
        payload = bytes(n * 5 & 255 for n in range(size))
        echo = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=1, seq=size, data=payload))
        packet = dpkt.ip.IP(src=US, dst=GUEST, p=1, data=echo)
        packet.len = len(packet)
        line.peer.send(bytes(dpkt.ethernet.Ethernet(src=OUTSIDE_MAC, dst=mac, type=0x0800, data=packet)))
        reply = answer(engine, line.peer).data.data
        assert (reply.type, reply.data.seq) == (0, size)
        assert bytes(reply.data.data)[:size] == payload


def test_a_peer_that_never_stops_does_not_keep_a_run_from_its_end(line):
    stop = threading.Event()
    noise = b"".join(len(f).to_bytes(4, "big") + f for f in [frame(0xFFFF_FFFF_FFFF, OUTSIDE, b"noise")] * 64)

    def chatter() -> None:
        line.peer.sock.setblocking(True)
        line.peer.sock.settimeout(0.2)
        while not stop.is_set():
            try:
                line.peer.sock.send(noise)
            except TimeoutError:
                continue

    engine = engine_of(line, "pairs", 2000)
    talker = threading.Thread(target=chatter)
    talker.start()
    try:
        assert engine.run()
    finally:
        stop.set()
        talker.join()
    assert [(f.missing, f.corrupt) for f in engine.workload.findings()] == [(0, 0), (0, 0)]


def test_the_pump_serves_wires(line):
    host = line.rig.machine.host
    pump = Pump(host, [line.rig.nic], [], [line.wire])
    line.peer.send(frame(line.rig.driver(0).mac, OUTSIDE, b"hello"))
    assert pump.turn() >= 1
    line.rig.clock.sleep(10**12)
    pump()  # rests on the wire's descriptor, which has nothing to say
    assert line.rig.nic.port.nic["counters"]["gprc"] == 1


TWO_CARDS = """\
name: two-cards
pfs: [{name: p, sr-iov: {total-vfs: 2}}, {name: q, sr-iov: {total-vfs: 2}}]
guests:
  - {name: a, memory-mib: 4, nic: {pf: p, vf: 0}}
  - {name: a1, memory-mib: 4, nic: {pf: p, vf: 1}}
  - {name: b, memory-mib: 4, nic: {pf: q, vf: 0}}
  - {name: b1, memory-mib: 4, nic: {pf: q, vf: 1}}
workload: {kind: pairs}
"""


def test_frames_cross_a_cable_while_the_pump_rests():
    with Machine(parse_lab(TWO_CARDS), VirtualClock()) as machine:
        wires = [Wire(pf.nic, end) for pf, end in zip(machine.pfs, make_cable(), strict=True)]
        pump = Pump(machine.host, [pf.nic for pf in machine.pfs], [], wires)
        while pump.turn():
            pass
        a, _, b, _ = (run.driver for run in machine.guests)
        before = [int(pf.nic.port.nic["counters"]["gprc"]) for pf in machine.pfs]
        send(a, frame(b.mac, a.mac, b"there"))
        send(b, frame(a.mac, b.mac, b"back"), frame(a.mac, b.mac, b"again"))
        pump.rest(0)
        after = [int(pf.nic.port.nic["counters"]["gprc"]) for pf in machine.pfs]
        assert [now - then for then, now in zip(before, after, strict=True)] == [2, 1]
        for wire in wires:
            wire.close()


# Whole runs.


def test_a_run_reports_its_uplink(tmp_path):
    path = tmp_path / "wire"
    report = run_lab(parse_lab(wired(f"stream:listen:{path}")))
    assert verdict(report).passed
    assert report["pfs"][0]["uplink"] == {"up": False, "events": {}}
    assert not path.exists()


def test_a_run_with_a_peer(tmp_path):
    path = tmp_path / "wire"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(path))
        door.listen(1)
        heard: list[bytes] = []

        def listen() -> None:
            peer, _ = door.accept()
            with peer:
                while got := peer.recv(1 << 20):
                    heard.append(got)

        listener = threading.Thread(target=listen)
        listener.start()
        report = run_lab(parse_lab(wired(f"stream:{path}", "{kind: broadcast, frames: 3000}")))
        listener.join()
    assert verdict(report).passed
    assert report["pfs"][0]["uplink"] == {"up": True, "events": {"connected": 1}}
    full = report["pfs"][0]["switch"]["dropped"].get("uplink-full", 0)
    assert len(b"".join(heard)) == (3000 - full) * (4 + 1514)  # the run waits for a peer that reads


@pytest.mark.parametrize("kind", ["broadcast", "pairs"])
@pytest.mark.parametrize(("link", "policies"), [(10, ""), (0, "[{id: 0, max-tx-rate: 20}, {id: 1, max-tx-rate: 20}]")])
@pytest.mark.parametrize("outside", [False, True])
def test_frames_that_wait_for_their_time_are_not_lost(tmp_path, kind, link, policies, outside):
    """At 10 Mb/s a frame of 1518 bytes takes longer than hundreds of steps of the run."""
    workload = f"{{kind: {kind}, frames: 700, frame-bytes: 1518}}"
    text = lab_text(workload=workload, link_mbps=link, policies=policies)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "wire"))
        door.listen(1)
        heard: list[int] = []

        def listen() -> None:
            peer, _ = door.accept()
            with peer:
                while got := peer.recv(1 << 20):
                    heard.append(len(got))

        listener = threading.Thread(target=listen)
        if outside:
            text = text.replace("model: 82576", f"model: 82576, uplink: 'stream:{tmp_path}/wire'")
            listener.start()
        report = run_lab(parse_lab(text))
        if outside:
            listener.join()
    assert verdict(report) == Verdict(True, "every frame arrived once, unaltered and in order")
    assert [guest["rx_frames"] for guest in report["guests"]] == ([0, 700] if kind == "broadcast" else [700, 700])
    assert sum(heard) == (700 * (4 + 1514) if outside and kind == "broadcast" else 0)


def test_nobody_at_the_socket(tmp_path):
    with pytest.raises(VirtfnError, match="no uplink at"):
        run_lab(parse_lab(wired(f"stream:{tmp_path}/nobody")))


def test_two_pfs_cannot_have_one_socket(tmp_path):
    text = wired(f"stream:listen:{tmp_path}/wire").replace(
        "guests:", f"  - {{name: pf1, uplink: 'stream:listen:{tmp_path}/wire'}}\nguests:"
    )
    with pytest.raises(VirtfnError, match="another server listens"):
        run_lab(parse_lab(text))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uplink", ["tap:tap7", "stream:x"])
def test_a_replay_has_no_live_uplink(tmp_path, uplink):
    (tmp_path / "x.pcap").write_bytes(b"")
    with pytest.raises(LabError, match="a replay knows every frame; use uplink: none or pcap:FILE"):
        parse_lab(wired(uplink, f"{{kind: pcap, pcap: {tmp_path}/x.pcap}}"))
