"""A stream uplink, judged by passt: a guest of ours gets an address by DHCP, and ARP answers, without root."""

from __future__ import annotations

import ipaddress
import socket
import time
from contextlib import closing

import dpkt
import pytest

from unit.rig import Rig, send, take
from unit.vmm.uplink.outside import ADDRESS, GATEWAY, PATIENCE_S, run_passt
from virtfn.vmm.uplink import StreamUplink, Wire


@pytest.fixture
def passt():
    with run_passt() as path:
        yield path


def hear(rig: Rig, wire: Wire, wanted) -> dpkt.ethernet.Ethernet:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        wire.serve()
        rig.serve(1)
        for body in take(rig.driver(0)):
            packet = dpkt.ethernet.Ethernet(body)
            if wanted(packet):
                return packet
    raise AssertionError("passt does not answer")


def discover(mac: bytes) -> bytes:
    message = dpkt.dhcp.DHCP(chaddr=mac, xid=7, opts=((dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes([dpkt.dhcp.DHCPDISCOVER])),))
    datagram = dpkt.udp.UDP(sport=68, dport=67, data=bytes(message))
    datagram.ulen = len(datagram)
    packet = dpkt.ip.IP(src=bytes(4), dst=b"\xff" * 4, p=dpkt.ip.IP_PROTO_UDP, data=datagram)
    packet.len = len(packet)
    return bytes(dpkt.ethernet.Ethernet(src=mac, dst=b"\xff" * 6, type=0x0800, data=packet))


def test_passt_gives_an_address_and_answers_arp(passt):
    with Rig() as rig, closing(Wire(rig.nic, StreamUplink(passt, rig.clock))) as wire:
        driver = rig.driver(0)
        mac = int(driver.mac).to_bytes(6, "little")
        send(driver, discover(mac))
        offer = hear(rig, wire, lambda p: isinstance(p.data, dpkt.ip.IP) and isinstance(p.data.data, dpkt.udp.UDP))
        assert ipaddress.ip_address(dpkt.dhcp.DHCP(bytes(offer.data.data.data)).yiaddr) == ipaddress.ip_address(ADDRESS)
        arp = dpkt.arp.ARP(sha=mac, spa=socket.inet_aton(ADDRESS), tpa=socket.inet_aton(GATEWAY))
        send(driver, bytes(dpkt.ethernet.Ethernet(src=mac, dst=b"\xff" * 6, type=0x0806, data=bytes(arp))))
        reply = hear(rig, wire, lambda p: isinstance(p.data, dpkt.arp.ARP) and p.data.op == dpkt.arp.ARP_OP_REPLY)
        assert reply.data.spa == socket.inet_aton(GATEWAY)
        assert wire.uplink.counts == {"connected": 1}
