"""Tap uplinks, judged by Linux: its network stack answers a guest. Each test has a network namespace of its own."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import dpkt
import pytest

from unit.rig import Rig, send, take
from unit.vmm.uplink.outside import PATIENCE_S, ip, own_network
from virtfn.machine.clock import S_PS, VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.uplink import TapUplink, Wire

LINUX, GUEST = "10.77.0.1", "10.77.0.2"


@pytest.fixture(autouse=True)
def namespace():
    with own_network():
        yield


class Line:
    """Two guests whose NIC has a tap, to which Linux has the address 10.77.0.1."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.uplink = TapUplink("tap7", rig.clock)
        self.wire = Wire(rig.nic, self.uplink)
        ip("address", "add", f"{LINUX}/24", "dev", "tap7")
        self.mac = int.from_bytes(socket_mac("tap7"), "little")
        rig.igb.set_trust(0, True)
        rig.driver(0).set_promiscuous(False, True)

    def turn(self) -> None:
        self.wire.serve()
        self.rig.serve(1)

    def hear(self, wanted, n: int = 0) -> dpkt.ethernet.Ethernet:
        """Wait for a frame that guest `n` wants; Linux sends others, too."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.turn()
            for body in take(self.rig.driver(n)):
                packet = dpkt.ethernet.Ethernet(body)
                if wanted(packet):
                    return packet
        raise AssertionError("Linux does not answer")


def socket_mac(name: str) -> bytes:
    return bytes.fromhex(ip("-br", "link", "show", "dev", name).split()[2].replace(":", ""))


@pytest.fixture
def line():
    with Rig() as rig:
        made = Line(rig)
        yield made
        made.wire.close()


def arp_request(driver) -> bytes:
    mac = int(driver.mac).to_bytes(6, "little")
    arp = dpkt.arp.ARP(sha=mac, spa=socket.inet_aton(GUEST), tha=bytes(6), tpa=socket.inet_aton(LINUX))
    return bytes(dpkt.ethernet.Ethernet(src=mac, dst=b"\xff" * 6, type=dpkt.ethernet.ETH_TYPE_ARP, data=bytes(arp)))


def echo_request(line: Line, payload: bytes) -> bytes:
    mac = int(line.rig.driver(0).mac).to_bytes(6, "little")
    echo = dpkt.icmp.ICMP.Echo(id=7, seq=1, data=payload)
    icmp = dpkt.icmp.ICMP(type=dpkt.icmp.ICMP_ECHO, data=echo)
    packet = dpkt.ip.IP(src=socket.inet_aton(GUEST), dst=socket.inet_aton(LINUX), p=dpkt.ip.IP_PROTO_ICMP, data=icmp)
    packet.len = len(packet)
    target = line.mac.to_bytes(6, "little")
    return bytes(dpkt.ethernet.Ethernet(src=mac, dst=target, type=dpkt.ethernet.ETH_TYPE_IP, data=packet))


def test_linux_answers_arp_and_pings(line):
    guest = line.rig.driver(0)
    send(guest, arp_request(guest))
    reply = line.hear(lambda p: isinstance(p.data, dpkt.arp.ARP) and p.data.op == dpkt.arp.ARP_OP_REPLY)
    assert reply.data.sha == line.mac.to_bytes(6, "little")
    assert len(bytes(reply)) == 60  # Linux hands 42 bytes over; a wire has no frame so short
    for size in (0, 56, 1472):
        payload = bytes(n * 7 & 255 for n in range(size))
        send(guest, echo_request(line, payload))
        reply = line.hear(lambda p: isinstance(p.data, dpkt.ip.IP) and isinstance(p.data.data, dpkt.icmp.ICMP))
        assert reply.data.data.type == dpkt.icmp.ICMP_ECHOREPLY
        assert bytes(reply.data.data.data.data)[:size] == payload
    assert line.uplink.counts == {}


def test_what_linux_sends_to_all_reaches_all(line):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(b"hello, all", ("10.77.0.255", 7777))
    for n in range(2):
        got = line.hear(lambda p: isinstance(p.data, dpkt.ip.IP) and p.data.p == dpkt.ip.IP_PROTO_UDP, n)
        assert bytes(got.data.data.data) == b"hello, all"


def test_a_frame_longer_than_the_nic_takes_is_dropped(line):
    ip("link", "set", "tap7", "mtu", "20000")
    mac = int(line.rig.driver(0).mac).to_bytes(6, "little")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("tap7", 0))
        sock.send(mac + line.mac.to_bytes(6, "little") + b"\x88\xb6" + bytes(18000))
        sock.send(mac + line.mac.to_bytes(6, "little") + b"\x88\xb6" + b"short enough")
    line.hear(lambda p: p.type == 0x88B6)
    assert line.rig.nic.drops(None)["oversize"] == 1


def test_the_link_follows_the_interface(line):
    guest = line.rig.driver(0)
    assert guest.link
    for state in ("down", "up"):
        ip("link", "set", "tap7", state)
        line.rig.clock.sleep(S_PS)
        line.turn()
        line.turn()
        assert line.wire.up == guest.link == (state == "up")


def test_frames_that_linux_refuses_are_counted(line):
    ip("link", "set", "tap7", "down")
    guest = line.rig.driver(0)
    send(guest, arp_request(guest))
    line.rig.serve()
    assert line.uplink.send(line.rig.nic.departures()) == line.rig.nic.departures().size
    assert line.uplink.counts == {"not taken": 1}


def test_an_interface_that_goes_and_comes_back(line):
    ip("link", "delete", "tap7")
    line.rig.clock.sleep(S_PS)
    line.turn()
    assert not line.wire.up
    assert line.uplink.counts["gone"] == 1
    assert line.uplink.fileno() == -1
    line.turn()
    ip("tuntap", "add", "dev", "tap7", "mode", "tap")
    line.rig.clock.sleep(S_PS)
    line.turn()
    assert line.wire.up
    ip("address", "add", f"{LINUX}/24", "dev", "tap7")
    line.mac = int.from_bytes(socket_mac("tap7"), "little")
    send(line.rig.driver(0), arp_request(line.rig.driver(0)))
    assert line.hear(lambda p: isinstance(p.data, dpkt.arp.ARP)).data.spa == socket.inet_aton(LINUX)


def test_an_interface_made_here_goes_at_the_end_and_others_stay():
    TapUplink("tap8", VirtualClock()).close()
    assert "tap8" not in ip("-br", "link")
    ip("tuntap", "add", "dev", "tap9", "mode", "tap")
    TapUplink("tap9", VirtualClock()).close()
    assert "tap9" in ip("-br", "link")


# Words.


def refusal(name: str) -> VirtfnError:
    with pytest.raises(VirtfnError) as caught:
        TapUplink(name, VirtualClock())
    return caught.value


def test_without_the_right_to_it():
    os.seteuid(65534)
    try:
        error = refusal("tap7")
    finally:
        os.seteuid(0)
    assert error.errno_name in ("EPERM", "EACCES")
    assert str(error) == (
        "tap tap7 is for root, or for the user it was made for: ip tuntap add dev tap7 mode tap user $USER"
    )


def test_an_interface_of_its_user_needs_no_right():
    if Path("/dev/net/tun").stat().st_mode & 0o006 != 0o006:
        pytest.skip("not run: /dev/net/tun is for root alone here")
    ip("tuntap", "add", "dev", "tap7", "mode", "tap", "user", "65534")
    ip("link", "set", "tap7", "up")
    os.seteuid(65534)
    try:
        uplink = TapUplink("tap7", VirtualClock())
        assert uplink.attend()
        uplink.close()
    finally:
        os.seteuid(0)


def test_in_use_and_of_another_kind():
    uplink = TapUplink("tap7", VirtualClock())
    assert refusal("tap7").errno_name == "EBUSY"
    uplink.close()
    error = refusal("lo")
    assert error.errno_name == "EINVAL"
    assert "is an interface of another kind" in str(error)
