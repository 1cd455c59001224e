"""Stream uplinks: frames both ways, and peers that send nonsense, stall, vanish and come back."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from unit.rig import BROADCAST, Rig, frame, send, take
from unit.vmm.vfio_user.peer import Lingering
from virtfn.drivers.igbvf import Igbvf
from virtfn.kernels.i82576.state import DEPARTURE_BYTES
from virtfn.kernels.streams import MAX_STREAM_FRAME
from virtfn.machine.clock import S_PS, VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.uplink import StreamUplink, Wire, open_uplink

OUTSIDE = 0x1234_5678_9A02


class Peer:
    """The other end, as a test plays it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.rest = b""

    def send(self, *frames: bytes) -> None:
        self.sock.sendall(b"".join(len(f).to_bytes(4, "big") + f for f in frames))

    def read(self) -> None:
        try:
            while got := self.sock.recv(1 << 20):
                self.rest += got
        except BlockingIOError:
            pass

    def take(self) -> list[bytes]:
        self.read()
        frames = []
        while len(self.rest) >= 4 and len(self.rest) >= 4 + struct.unpack(">I", self.rest[:4])[0]:
            length = struct.unpack(">I", self.rest[:4])[0]
            frames.append(self.rest[4 : 4 + length])
            self.rest = self.rest[4 + length :]
        return frames


class Line:
    """Two guests whose NIC has a stream uplink that listens, and a peer that has come."""

    def __init__(self, rig: Rig, path) -> None:
        self.rig = rig
        self.path = path
        self.uplink = StreamUplink(path, rig.clock, listening=True)
        self.wire = Wire(rig.nic, self.uplink)
        self.peer = self.come()
        for n in range(2):
            rig.igb.set_trust(n, True)
            rig.driver(n).set_promiscuous(False, True)

    def come(self) -> Peer:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))
        self.turn()
        return Peer(sock)

    def turn(self, rounds: int = 4) -> None:
        for _ in range(rounds):
            self.wire.serve()
            self.rig.serve(1)

    def wire_drops(self) -> dict[str, int]:
        return self.rig.nic.drops(None)


@pytest.fixture
def line(tmp_path):
    with Rig() as rig:
        made = Line(rig, tmp_path / "wire")
        yield made
        made.wire.close()
        made.peer.sock.close()


def from_outside(driver: Igbvf, payload: bytes = b"", **kwargs) -> bytes:
    return frame(driver.mac, OUTSIDE, payload, **kwargs)


# Frames.


def test_frames_go_out_and_come_in(line):
    a, b = line.rig.driver(0), line.rig.driver(1)
    out = [frame(OUTSIDE, a.mac, bytes([n]), length=60 + 7 * n) for n in range(40)]
    send(a, *out)
    line.turn()
    assert line.peer.take() == out
    into = [from_outside(b, bytes([n]), length=60 + 7 * n) for n in range(40)]
    line.peer.send(*into)
    line.turn()
    assert take(b) == into
    assert take(a) == []
    assert line.rig.nic.port.nic["counters"]["gptc"] == line.rig.nic.port.nic["counters"]["gprc"] == 40


def test_what_stays_inside_does_not_leave_and_groups_go_both_ways(line):
    a, b = line.rig.driver(0), line.rig.driver(1)
    to_all = frame(BROADCAST, a.mac, b"all")
    send(a, frame(b.mac, a.mac, b"inside"), to_all)
    line.turn()
    assert line.peer.take() == [to_all]
    assert len(take(b)) == 2


def test_short_frames_are_filled_up_both_ways(line):
    a = line.rig.driver(0)
    send(a, frame(OUTSIDE, a.mac, b"x", length=20))
    line.peer.send(from_outside(a, b"y", length=42), from_outside(a, length=14))
    line.turn()
    assert line.peer.take() == [frame(OUTSIDE, a.mac, b"x", length=60)]
    assert take(a) == [from_outside(a, b"y", length=60), from_outside(a, length=60)]


def test_tags_pass(line):
    a = line.rig.driver(0)
    a.set_vlan(7)
    send(a, frame(OUTSIDE, a.mac, b"tagged", vid=7))
    line.peer.send(from_outside(a, b"in", vid=7, length=100), from_outside(a, b"in", vid=8, length=100))
    line.turn()
    assert line.peer.take() == [frame(OUTSIDE, a.mac, b"tagged", vid=7)]
    assert [len(f) for f in take(a)] in ([96], [100])  # with the tag, or in the descriptor
    assert line.wire_drops() == {"vlan-filter": 1}


def test_the_longest_frame_passes_and_a_longer_one_is_dropped(line):
    a = line.rig.driver(0)
    line.peer.send(from_outside(a, length=1514))
    line.turn()
    assert [len(f) for f in take(a)] == [1514]
    for length in (9725, MAX_STREAM_FRAME):
        line.peer.send(bytes(length))
        line.turn(8)
    assert line.wire_drops() == {"oversize": 2}
    line.peer.send(from_outside(a))
    line.turn()
    assert len(take(a)) == 1


def test_a_stream_in_any_pieces_is_the_same_stream(line):
    a, rng = line.rig.driver(0), random.Random(7)
    frames = [from_outside(a, bytes([n]) * rng.randrange(1400), length=60) for n in range(100)]
    stream = b"".join(len(f).to_bytes(4, "big") + f for f in frames)
    got = []
    while stream:
        size = rng.choice([1, 2, 3, 5, 64, 1000, 5000])
        line.peer.sock.sendall(stream[:size])
        stream = stream[size:]
        line.turn(1)
        got += take(a)
    line.turn(8)
    assert got + take(a) == frames


def test_more_than_one_burst_arrives_in_order(line):
    a = line.rig.driver(0)
    frames = [from_outside(a, n.to_bytes(2, "big")) for n in range(700)]
    line.peer.send(*frames)
    got = []
    for _ in range(40):
        line.turn(1)
        got += take(a)
    assert got == frames


# Hostile peers.


@pytest.mark.parametrize("length", [MAX_STREAM_FRAME + 1, 1 << 31, 0xFFFFFFFF])
def test_an_impossible_length_ends_the_connection(line, length):
    a = line.rig.driver(0)
    good = from_outside(a, b"good")
    line.peer.send(good)
    line.peer.sock.sendall(length.to_bytes(4, "big") + bytes(64))
    line.turn()
    assert take(a) == [good]
    assert line.uplink.counts["malformed"] == 1
    assert not line.wire.up
    again = line.come()
    again.send(good)
    line.turn()
    assert take(a) == [good]
    again.sock.close()


def test_a_descriptor_ends_the_connection_and_holds_nothing_up(line, hurry):
    lingering = Lingering()
    a = line.rig.driver(0)
    good = from_outside(a, b"good")
    with hurry(5):
        lingering.put(line.peer.sock, len(good).to_bytes(4, "big") + good)
        line.turn()
        assert line.uplink.counts["malformed"] == 1
        again = line.come()
        again.send(good)
        line.turn()
        assert take(a) == [good]
        again.sock.close()
        last, unread = line.come(), Lingering()
        unread.put(last.sock, bytes(2))
        line.wire.close()
        last.sock.close()
    lingering.release()
    unread.release()


def test_frames_too_short_for_a_header_are_counted_and_skipped(line):
    a = line.rig.driver(0)
    line.peer.send(b"", b"x", bytes(13), from_outside(a, b"good"))
    line.turn()
    assert line.wire_drops() == {"undersize": 3}
    assert take(a) == [from_outside(a, b"good")]


def test_many_empty_frames_take_their_turns(line):
    line.peer.send(*[b""] * 5000)
    line.turn(100)
    assert line.wire_drops() == {"undersize": 5000}


def test_half_a_frame_is_nobodys(line):
    a = line.rig.driver(0)
    line.peer.sock.sendall((100).to_bytes(4, "big") + bytes(50))
    line.turn()
    line.peer.sock.close()
    line.turn()
    assert line.uplink.counts["cut short"] == 1
    again = line.come()
    again.send(from_outside(a, b"whole"))
    line.turn()
    assert take(a) == [from_outside(a, b"whole")]
    again.sock.close()


def test_a_peer_that_does_not_read_costs_a_store_and_no_more(line):
    a, b = line.rig.driver(0), line.rig.driver(1)
    body = frame(OUTSIDE, a.mac, b"out", length=1514)
    sent = 0
    while "uplink-full" not in line.wire_drops():
        send(a, *[body] * 64)
        sent += 64
        line.turn(1)
        assert line.rig.nic.departures().size <= DEPARTURE_BYTES
    assert sent * 1518 > DEPARTURE_BYTES
    send(a, frame(b.mac, a.mac, b"inside"))  # nobody else waits for it
    line.turn()
    assert take(b) == [frame(b.mac, a.mac, b"inside")]
    got = []
    while frames := line.peer.take():  # what was not dropped arrives, whole and in step
        got += frames
        line.turn(1)
    assert set(got) == {body}
    assert len(got) + line.wire_drops()["uplink-full"] == sent


# Link.


def test_the_link_follows_the_peer(line):
    a = line.rig.driver(0)
    assert line.wire.up
    assert a.link
    line.peer.sock.close()
    line.turn()
    assert not line.wire.up
    assert not a.link
    assert line.rig.drops(0) == {}
    send(a, frame(OUTSIDE, a.mac))
    line.turn()
    assert line.rig.drops(0) == {"no-match": 1}  # nobody inside has the address, and the wire leads nowhere
    again = line.come()
    line.turn()
    assert a.link
    send(a, frame(OUTSIDE, a.mac, b"again"))
    line.turn()
    assert again.take() == [frame(OUTSIDE, a.mac, b"again")]
    again.sock.close()
    assert line.uplink.counts["connected"] == 2


def test_a_new_peer_gets_whole_frames_only(line):
    a = line.rig.driver(0)
    for _ in range(40):
        send(a, *[frame(OUTSIDE, a.mac, b"old", length=1514)] * 16)
        line.turn(1)
    assert line.rig.nic.departures().size
    line.peer.sock.close()
    line.turn()
    assert line.rig.nic.departures().size == 0
    assert line.wire_drops()["no-uplink"] > 0
    again = line.come()
    send(a, frame(OUTSIDE, a.mac, b"new"))
    line.turn()
    assert again.take() == [frame(OUTSIDE, a.mac, b"new")]
    again.sock.close()


def test_a_second_peer_waits_for_the_first_to_go(line):
    a = line.rig.driver(0)
    second = line.come()
    send(a, frame(OUTSIDE, a.mac, b"1"))
    line.turn()
    assert len(line.peer.take()) == 1
    assert second.take() == []
    line.peer.sock.close()
    line.turn()
    send(a, frame(OUTSIDE, a.mac, b"2"))
    line.turn()
    assert second.take() == [frame(OUTSIDE, a.mac, b"2")]
    second.sock.close()


def test_who_connects_tries_again(tmp_path):
    clock = VirtualClock()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "door"))
        door.listen(1)
        uplink = StreamUplink(tmp_path / "door", clock)
        first, _ = door.accept()
        assert uplink.attend()
        first.close()
    assert len(uplink.receive()) == 0
    for _ in range(10):
        assert not uplink.attend()
        clock.sleep(S_PS // 10)
    assert uplink.counts["refused"] == 1  # not more often than twice a second
    (tmp_path / "door").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "door"))
        door.listen(1)
        clock.sleep(S_PS)
        assert uplink.attend()
    uplink.close()


# Words.


def test_a_missing_peer_is_named(tmp_path):
    with pytest.raises(
        VirtfnError, match=r"no uplink at .*/nobody: No such file or directory; start what listens"
    ) as e:
        open_uplink("stream:nobody", tmp_path, VirtualClock())
    assert e.value.errno_name == "ENOENT"


def test_a_name_too_long_for_a_socket_is_refused(tmp_path):
    with pytest.raises(VirtfnError, match="too long"):
        open_uplink("stream:listen:" + "x" * 200, tmp_path, VirtualClock())


def test_a_long_name_can_be_connected_to(tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        door.listen()
        (tmp_path / "door").rename(deep / "door")
        StreamUplink(deep / "door", VirtualClock()).close()


def test_a_file_that_is_no_socket_stays(tmp_path):
    (tmp_path / "wire").write_text("mine")
    with pytest.raises(VirtfnError, match="is not a socket"):
        open_uplink("stream:listen:wire", tmp_path, VirtualClock())
    assert (tmp_path / "wire").read_text() == "mine"


def test_the_socket_is_its_owners_and_gone_at_the_end(tmp_path):
    uplink = open_uplink("stream:listen:wire", tmp_path, VirtualClock())
    assert (tmp_path / "wire").stat().st_mode & 0o777 == 0o600
    uplink.close()
    assert list(tmp_path.iterdir()) == []


def test_other_words_are_refused(tmp_path):
    assert open_uplink("none", tmp_path, VirtualClock()) is None
    with pytest.raises(VirtfnError, match="eth0 is no uplink"):
        open_uplink("eth0", tmp_path, VirtualClock())


# Two labs.


def test_two_labs_are_one_network(tmp_path):
    with Rig(policies="[{id: 0, mac-address: '02:00:00:00:aa:01'}]") as one, Rig() as two:
        door = Wire(one.nic, StreamUplink(tmp_path / "wire", one.clock, listening=True))
        way = Wire(two.nic, StreamUplink(tmp_path / "wire", two.clock))

        def turn() -> None:
            for _ in range(3):
                for rig, wire in ((one, door), (two, way)):
                    wire.serve()
                    rig.serve(1)

        turn()
        here, there = one.driver(0), two.driver(0)
        send(here, frame(there.mac, here.mac, b"question"))
        turn()
        assert take(there) == [frame(there.mac, here.mac, b"question")]
        send(there, frame(here.mac, there.mac, b"answer"))
        turn()
        assert take(here) == [frame(here.mac, there.mac, b"answer")]
        door.close()
        turn()
        assert not way.up
        way.close()
