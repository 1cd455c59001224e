#!/usr/bin/env bash
# Record tests/captures/*.pcap anew: real programs between two network namespaces, joined by a veth pair, recorded by
# tcpdump. Wants root on Debian; installs what is missing. Nothing outside its own namespaces is touched or recorded.
#
#     alice 10.76.0.1, fd76::1  02:00:00:00:0a:01  ---- veth ----  bob 10.76.0.2, fd76::2  02:00:00:00:0b:02
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$here/tests/captures}
work=$(mktemp -d)
alice=virtfn-alice-$$
bob=virtfn-bob-$$
children=()

packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need tcpdump tcpdump
need ip iproute2
need ping iputils-ping
need arping iputils-arping
need dig dnsutils
need dnsmasq dnsmasq-base
need curl curl
need python3 python3
need ethtool ethtool
if ((${#packages[@]})); then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

stop_children() {
    for child in "${children[@]}"; do kill -TERM "$child" 2>/dev/null || true; done
    for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
    children=()
}
cleanup() {
    stop_children
    ip netns del "$alice" 2>/dev/null || true
    ip netns del "$bob" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

in_alice() { ip netns exec "$alice" "$@"; }
in_bob() { ip netns exec "$bob" "$@"; }
background() { # background NAMESPACE PROGRAM...: start it and remember it, so that only it is stopped
    ip netns exec "$@" >>"$work/log" 2>&1 &
    children+=($!)
}
quiet() { "$@" >>"$work/log" 2>&1; }
record() { # record NAME: tcpdump on alice's end until finish
    name=$1
    # Checksums are completed in software, so that the recorded frames are the ones that a wire would carry.
    background "$alice" tcpdump -i eth0 --immediate-mode -U -s 0 -w "$work/$name.pcap" "${@:2}"
    until [ -s "$work/$name.pcap" ]; do sleep 0.05; done
}
finish() {
    sleep 0.5 # the last frames are still between the kernel and tcpdump
    stop_children
    install -m 644 "$work/$name.pcap" "$target/$name.pcap"
}
plug() { # plug NAMESPACE END MAC IPV4 IPV6
    ip link set "$2" netns "$1" name eth0
    ip netns exec "$1" sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.router_solicitations=0 \
        net.ipv6.conf.eth0.mldv2_unsolicited_report_interval=100
    ip -n "$1" link set lo up
    ip -n "$1" link set eth0 address "$3" up
    ip netns exec "$1" ethtool -K eth0 tx off tso off gso off gro off >>"$work/log" 2>&1 || true
    ip -n "$1" address add "$4" brd + dev eth0
    ip -n "$1" address add "$5" dev eth0 nodad
}

mkdir -p "$target"
ip netns add "$alice"
ip netns add "$bob"
ip link add "va$$" type veth peer name "vb$$"
plug "$alice" "va$$" 02:00:00:00:0a:01 10.76.0.1/24 fd76::1/64
plug "$bob" "vb$$" 02:00:00:00:0b:02 10.76.0.2/24 fd76::2/64
sleep 0.5

record arp
in_alice arping -q -c 3 -I eth0 10.76.0.2
in_bob arping -q -c 2 -U -I eth0 10.76.0.2 || true
finish

record ping
quiet in_alice ping -q -c 5 -i 0.2 10.76.0.2
quiet in_alice ping -q -c 3 -i 0.2 -s 1472 -M "do" 10.76.0.2
quiet in_alice ping -q -c 3 -i 0.2 -s 4000 10.76.0.2
finish

record ping6
quiet in_alice ping -6 -q -c 5 -i 0.2 fd76::2
quiet in_alice ping -6 -q -c 2 -i 0.2 -s 1452 fd76::2
finish

record dns
printf 'address=/host.lab.example/10.76.0.99\ntxt-record=text.lab.example,a word,another word\n' >"$work/dns.conf"
background "$bob" dnsmasq -k -C "$work/dns.conf" --no-resolv --no-hosts --user=root --pid-file= --listen-address=10.76.0.2
sleep 0.5
for question in "host.lab.example A" "text.lab.example TXT" "absent.example A" "+tcp host.lab.example A"; do
    # shellcheck disable=SC2086  # the question is several words
    in_alice dig @10.76.0.2 +tries=1 +time=2 $question >/dev/null || true
done
finish

record http
mkdir "$work/www"
seq 1 3000 >"$work/www/numbers.txt"
background "$bob" python3 -m http.server --bind 10.76.0.2 --directory "$work/www" 8080
until in_alice curl -s -o /dev/null http://10.76.0.2:8080/none; do sleep 0.1; done
in_alice curl -s http://10.76.0.2:8080/numbers.txt | cmp - "$work/www/numbers.txt"
finish

record tftp
mkdir "$work/tftp"
seq 1 1500 >"$work/tftp/boot.txt"
chmod -R a+rX "$work" "$work/tftp"
background "$bob" dnsmasq -k -C /dev/null --port=0 --user=root --pid-file= --enable-tftp --tftp-root="$work/tftp"
sleep 0.5
in_alice curl -s tftp://10.76.0.2/boot.txt | cmp - "$work/tftp/boot.txt"
finish

# A VLAN interface in user space, for kernels without 802.1Q: a tap whose frames cross eth0 with a tag.
cat >"$work/vlan.py" <<'PYTHON'
import fcntl
import select
import socket
import struct
import sys

TUNSETIFF, IFF_TAP_NO_PI, PACKET_AUXDATA, VLAN_VALID = 0x400454CA, 0x1002, 8, 1 << 4
TAG = struct.pack(">HH", 0x8100, 5 << 13 | 10)  # priority 5, VLAN 10

tap = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"vlan10", IFF_TAP_NO_PI))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("eth0", 3))
wire.setsockopt(263, PACKET_AUXDATA, 1)
print("ready", file=sys.stderr, flush=True)
while True:
    for ready in select.select([tap, wire], [], [])[0]:
        if ready is tap:
            frame = tap.read(2000)
            wire.send(frame[:12] + TAG + frame[12:])
            continue
        frame, notes, _, sender = wire.recvmsg(2000, 64)
        for _, _, note in notes:  # the kernel takes the tag off and tells it beside the frame
            status, _, _, _, _, tci = struct.unpack_from("IIIHHH", note)
            if status & VLAN_VALID and tci & 4095 == 10 and sender[2] != socket.PACKET_OUTGOING:
                tap.write(frame)
PYTHON

record vlan
for side in "$alice 02:00:00:00:0a:01 1" "$bob 02:00:00:00:0b:02 2"; do
    read -r namespace mac host <<<"$side"
    background "$namespace" python3 "$work/vlan.py"
    until ip -n "$namespace" link show vlan10 >"$work/null" 2>&1; do sleep 0.05; done
    ip netns exec "$namespace" sysctl -qw net.ipv6.conf.vlan10.disable_ipv6=1
    ip -n "$namespace" link set vlan10 address "$mac" up
    ip -n "$namespace" address add "10.77.0.$host/24" dev vlan10
done
quiet in_alice ping -q -c 5 -i 0.2 10.77.0.2
quiet in_alice ping -q -c 2 -i 0.2 -s 1472 -M "do" 10.77.0.2
background "$bob" python3 -m http.server --bind 10.77.0.2 --directory "$work/www" 8081
until in_alice curl -s http://10.77.0.2:8081/ >"$work/null"; do sleep 0.1; done
finish

record multicast
ip -n "$alice" route add default dev eth0
in_bob sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0
quiet in_alice ping -q -c 3 -i 0.2 -b 10.76.0.255 || true
quiet in_alice ping -q -c 3 -i 0.2 -I eth0 224.0.0.1 || true
quiet in_alice ping -6 -q -c 3 -i 0.2 ff02::1%eth0 || true
in_alice python3 - <<'PYTHON'
import socket

stream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
stream.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
stream.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.76.0.1"))
for n in range(4):
    stream.sendto(b"to everyone %d" % n, ("255.255.255.255", 9999))
    stream.sendto(b"to a group %d" % n, ("239.1.2.3", 9999))
PYTHON
finish

for file in "$target"/*.pcap; do
    (($(stat -c %s "$file") < 60000)) || { echo "$file is larger than 60 kB" >&2; exit 1; }
done
ls -l "$target"
