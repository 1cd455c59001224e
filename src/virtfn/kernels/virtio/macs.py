"""The bridge's table of addresses: learnt from the frames that come, forgotten after a while, or pinned by the host.

Four places for each hash. A port has so many places at most, and never takes one in which another port's address lives:
a front end that makes addresses up loses its own. Spec: IEEE 802.1D, 7.8 and 7.9.
"""

from __future__ import annotations

from virtfn.kernels._jit import Row, inlined, kernel, row_of

__all__ = ["MAC", "MAC_PLACES", "find_port", "learn", "place_of", "unlearn"]

# seen: when, in ps; -1: it is pinned
MAC = row_of("mac port seen")
MAC_PLACES = 4096
WAYS = 4
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)


@inlined
def place_of(mac: int) -> int:
    """First of the places where an address may be."""
    return (mac * _SPREAD >> 40 & (MAC_PLACES // WAYS - 1)) * WAYS


@inlined
def lives(b: Row, place: Row, now: int) -> bool:
    """Tell whether a place holds an address that counts."""
    return place.mac != 0 and (place.seen < 0 or now - place.seen <= b.own.ageing)


@kernel
def find_port(b: Row, mac: int, now: int) -> int:
    """Find the port that an address is behind, -1 if nobody knows. b: BRIDGE."""
    first = place_of(mac)
    for i in range(first, first + WAYS):
        place = b.macs[i]
        if place.mac == mac:
            return place.port if lives(b, place, now) else -1
    return -1


@kernel
def learn(b: Row, mac: int, n: int, now: int) -> None:
    """Note that a frame with this source came by port `n`."""
    first = place_of(mac)
    chosen = -1
    for i in range(first, first + WAYS):
        place = b.macs[i]
        if place.mac == mac:
            if place.seen < 0:
                return
            if place.port == n:
                place.seen = now
                return
            chosen = i
            break
        if not lives(b, place, now):
            chosen = i
    if chosen < 0:
        for i in range(first, first + WAYS):
            place = b.macs[i]
            if place.port == n and place.seen >= 0 and (chosen < 0 or place.seen < b.macs[chosen].seen):
                chosen = i
    if chosen >= 0:
        unlearn(b, chosen)
    port = b.ports[n]
    if chosen < 0 or port.learned >= port.most:
        b.own.unlearned += 1
        return
    place = b.macs[chosen]
    place.mac = mac
    place.port = n
    place.seen = now
    port.learned += 1


@kernel
def unlearn(b: Row, i: int) -> None:
    """Forget the address at place `i`."""
    place = b.macs[i]
    if place.mac:
        b.ports[place.port].learned -= 1
    place.mac = 0
