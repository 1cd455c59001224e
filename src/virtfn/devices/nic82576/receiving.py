"""Explain what becomes of a frame at the pools that the switch gave it: longest frame, queue, strip, descriptors."""

from __future__ import annotations

import struct
from collections.abc import Callable

from virtfn.devices.nic82576.sight import Queue, Sight, Target
from virtfn.hw.i82576 import VFS, Regs
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, RxMode
from virtfn.hw.i82576.rxtx import MRQC, RCTL, RPLOLR, SRRCTL, VMOLR

__all__ = ["Receiver"]

_STANDARD = 1518
_TAG = 4
_FCS = 4
_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP = 6, 17


class Receiver:
    """The way of a frame into the queues of pools. say: takes (stage, register, words)."""

    def __init__(self, sight: Sight, say: Callable[[str, str, str], None], pooled: bool) -> None:
        self._sight = sight
        self._say = say
        self._pooled = pooled
        self._double = bool(CTRL_EXT(sight.peek(Regs.CTRL_EXT, 0)).EXT_VLAN)
        self._hashing = MRQC(sight.peek(Regs.MRQC, 0))

    def receive(
        self, pools: list[int], frame: bytes, tci: int | None, replicated: bool, dropped: list[tuple[int | None, str]]
    ) -> tuple[list[Target], str]:
        """Give a frame to pools; returns those that get it, and why the line is held up, if it is."""
        targets: list[Target] = []
        digest = self._hash(frame, tci)
        for pool in pools:
            reason, target = self._one(pool, frame, tci, replicated, digest)
            if target is not None:
                targets.append(target)
            elif reason:
                dropped.append((pool, reason))
            else:
                return targets, f"{self._sight.name(pool)} has no descriptors and must not drop: the line is held up"
        return targets, ""

    def _one(
        self, pool: int, frame: bytes, tci: int | None, replicated: bool, digest: int | None
    ) -> tuple[str, Target | None]:
        stage = self._sight.name(pool)
        register, limit = self._limit(pool, tci is not None)
        if len(frame) + _FCS > limit:
            self._say(stage, register, f"{len(frame) + _FCS} bytes are more than {limit}: dropped, oversize")
            return "oversize", None
        q = self._queue(pool, digest, stage)
        queue = self._sight.queue(q)
        if queue is None:
            self._say(stage, f"RXDCTL[{q}].ENABLE", f"receive queue {q} does not run: dropped, queue-disabled")
            return "queue-disabled", None
        stripped = tci is not None and self._strips(pool, replicated, stage)
        needed = self._needed(queue, len(frame) - _TAG * stripped)
        if queue.free and needed >= queue.size:
            self._say(stage, f"RDLEN[{q}]", f"more than the whole ring of {queue.size} holds: dropped, oversize")
            return "oversize", None
        if needed > queue.free:
            if not queue.drops:
                self._say(stage, f"SRRCTL[{q}].DROP_EN, QDE", "no descriptor, and it must not drop: it waits")
                return "", None
            self._say(stage, f"RDT[{q}]", f"{queue.free} descriptors are left, {needed} needed: dropped, no-descriptor")
            return "no-descriptor", None
        self._say(stage, f"RDT[{q}]", f"received by queue {q}, descriptors: {needed}")
        return "", {"pool": pool, "queue": q, "descriptors": needed, "stripped": stripped}

    def _limit(self, pool: int, tagged: bool) -> tuple[str, int]:
        standard = _STANDARD + _TAG * (self._double + tagged)
        if self._pooled:
            vmolr = VMOLR(self._sight.peek(Regs.VMOLR, pool))
            return f"VMOLR[{pool}].RLPML", int(vmolr.RLPML) if vmolr.LPE else standard
        long = RCTL(self._sight.peek(Regs.RCTL, 0)).LPE
        return "RLPML", self._sight.peek(Regs.RLPML, 0) if long else standard

    def _strips(self, pool: int, replicated: bool, stage: str) -> bool:
        if replicated:
            register, strips = "RPLOLR.STRVLAN", RPLOLR(self._sight.peek(Regs.RPLOLR, 0)).STRVLAN
        elif self._pooled:
            register, strips = f"VMOLR[{pool}].STRVLAN", VMOLR(self._sight.peek(Regs.VMOLR, pool)).STRVLAN
        else:
            register, strips = "CTRL.VME", CTRL(self._sight.peek(Regs.CTRL, 0)).VME
        self._say(stage, register, "the tag is stripped" if strips else "the tag stays")
        return bool(strips)

    def _needed(self, queue: Queue, size: int) -> int:
        """Count descriptors, as if no header were split off."""
        control = SRRCTL(queue.control)
        room = int(control.BSIZEPACKET) << 10 or 2048 >> RCTL(self._sight.peek(Regs.RCTL, 0)).BSIZE
        return max(1, -(-size // room))

    # Which queue.

    def _queue(self, pool: int, digest: int | None, stage: str) -> int:
        if digest is None or (self._pooled and not VMOLR(self._sight.peek(Regs.VMOLR, pool)).RSSE):
            return pool if self._pooled else 0
        entry = digest & 0x7F
        value = self._sight.peek(Regs.RETA, entry >> 2) >> 8 * (entry & 3) & 0xFF
        q = pool + VFS * (value & 1) if self._pooled else value & 0xF
        self._say(stage, f"RETA entry {entry}", f"hash {digest:08x}: queue {q}")
        return q

    def _hash(self, frame: bytes, tci: int | None) -> int | None:
        """Hash a flow as MRQC says; None: nothing is hashed."""
        if self._hashing.MODE not in (RxMode.RSS, RxMode.VMDQ_RSS):
            return None
        start = 14 + _TAG * (tci is not None) + _TAG * self._double
        kind = int.from_bytes(frame[start - 2 : start], "big")
        if kind == _IPV4:
            return self._hash_ipv4(frame, start)
        return self._hash_ipv6(frame, start) if kind == _IPV6 else None

    def _hash_ipv4(self, frame: bytes, start: int) -> int | None:
        packet = frame[start:]
        if len(packet) < 20 or packet[0] >> 4 != 4:
            return None
        header, total, fragment = (packet[0] & 15) * 4, *struct.unpack_from(">HxxH", packet, 2)
        if header < 20 or not header <= total <= len(packet):
            return None
        protocol = -1 if fragment & 0x3FFF else packet[9]
        ports = self._ports(protocol, packet[header:total], self._hashing.RSS_TCP4, self._hashing.RSS_UDP4)
        if ports or self._hashing.RSS_IPV4:
            return self._toeplitz(packet[12:20] + ports)
        return None

    def _hash_ipv6(self, frame: bytes, start: int) -> int | None:
        packet = frame[start:]
        if len(packet) < 40 or packet[0] >> 4 != 6:
            return None
        end = 40 + int.from_bytes(packet[4:6], "big")
        if end > len(packet):
            return None
        ports = self._ports(packet[6], packet[40:end], self._hashing.RSS_TCP6, self._hashing.RSS_UDP6)
        if ports or self._hashing.RSS_IPV6:
            return self._toeplitz(packet[8:40] + ports)
        return None

    def _ports(self, protocol: int, payload: bytes, tcp: int, udp: int) -> bytes:
        if (protocol == _TCP and len(payload) >= 20 and tcp) or (protocol == _UDP and len(payload) >= 8 and udp):
            return payload[:4]
        return b""

    def _toeplitz(self, content: bytes) -> int:
        words = (self._sight.peek(Regs.RSSRK, i).to_bytes(4, "little") for i in range(Regs.RSSRK.count))
        key = int.from_bytes(b"".join(words), "big")
        bits = 8 * 4 * Regs.RSSRK.count
        digest = 0
        for i in range(8 * len(content)):
            if content[i >> 3] >> (7 - (i & 7)) & 1:
                digest ^= key >> (bits - 32 - i) & 0xFFFFFFFF
        return digest
