"""What the guests of one NIC do, and whether every frame can be accounted for.

    pairs       guest 0 and 1, 2 and 3, ... send to each other; an odd one out sends to guest 0
    fan-in      everyone sends to guest 0
    broadcast   guest 0 sends to everyone
    pcap        frames of a capture, dealt by source address (`plan.deal`)
    ping        guest 0 asks 1, 2 asks 3, ...: ARP, then ICMP echo, one at a time
    outside     the last is no guest but who is at the other end of the wire: each sends to it, and it to each in turn
    answer      nobody sends; all answer pings and ARP, as guests do that are at rest
    attack      guest 0 has other plans; guest 1 and 2, 3 and 4, ... send to each other; an odd one out sends to guest 1

A frame is accounted for when its receiver has it, unaltered, or when a counter with a reason says who dropped it; what
remains is lost. Frames are made and checked by `kernels/traffic.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import BROADCAST, LOCAL_EXPERIMENT_LOADED, MIN_FRAME
from virtfn.hw.types import Mac
from virtfn.iomodels.plan import deal, plan
from virtfn.kernels.clock import CLOCK, read_clock, set_up_clock
from virtfn.kernels.ranges import address_of, row_address
from virtfn.kernels.traffic import (
    DELAYS,
    FINE,
    GENERATE,
    GUESTS,
    IDLE,
    PING,
    REPLAY,
    STAMPS,
    TRAFFIC,
    digest,
    fill_buffers,
)
from virtfn.machine.captures import Frames
from virtfn.machine.ports import VirtfnError

__all__ = ["Findings", "Flow", "Station", "Workload"]

ANSWER = PING + 1
_MAX_SEQUENCE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Station:
    """A guest as a workload sees it: its driver's row, (1,) NETDEV, and its address."""

    row: npt.NDArray[np.void]
    mac: Mac


@dataclass(slots=True)
class Findings:
    """What became of the frames meant for one guest. An altered frame is corrupt, and not missing too.

    missing_from: by sender, altered ones included.
    """

    missing: int = 0
    missing_from: dict[int, int] = field(default_factory=dict)
    corrupt: int = 0
    reordered: int = 0
    repeated: int = 0
    refused: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flow:
    """What one guest sent to another, by their numbers, and how much of it arrived; of pings, was answered."""

    sender: int
    receiver: int
    sent: int
    heard: int


class Workload:
    """The work of the guests of one NIC.

    stations: the guests, at most 64. length: bytes of a frame without frame check sequence. frames: for each sender,
    None for a capture once; of a capture, whoever has frames in it sends so many, over and over. capture: frames to
    replay. uplink: frames that may come from outside meanwhile. delays: measure how long generated
    frames are under way. window: of these, how many may be, to each receiver; pace_ps: between two to each receiver; 0:
    no limit. Raises VirtfnError for a workload that these guests
    cannot do.
    """

    def __init__(
        self,
        kind: str,
        stations: Sequence[Station],
        *,
        length: int = 1514,
        frames: int | None = None,
        capture: Frames | None = None,
        rewrite: bool = True,
        uplink: Frames | None = None,
        seed: int = 1,
        raw: bool = False,
        delays: bool = False,
        window: int = 0,
        pace_ps: int = 0,
    ) -> None:
        if len(stations) > GUESTS:
            raise VirtfnError(f"at most {GUESTS} guests share a NIC, not {len(stations)}", errno_name="EINVAL")
        if len(stations) < 2 and kind != "answer":
            raise VirtfnError(f"a workload of kind {kind} needs two guests on the same PF", errno_name="EINVAL")
        self.kind = kind
        self.stations = list(stations)
        self.block = np.zeros(1, TRAFFIC)
        row_address(self.block, "a workload")
        self.row: np.void = self.block[0]
        self._kept: list[npt.NDArray[np.generic]] = []
        self._expected: list[list[tuple[int, npt.NDArray[np.int64]]]] = [[] for _ in stations]
        self.refused: list[dict[str, int]] = [{} for _ in stations]
        self.total_frames = 0
        self._strangers: set[int] = set()
        self._sent_before = sum(int(station.row[0]["tx_frames"]) for station in stations)
        n = len(stations)
        self.row["guests"] = n
        self.row["highest"][:] = -1
        for g, station in enumerate(self.stations):
            task = self.row["tasks"][g]
            task["netdev"] = station.row.ctypes.data
            task["index"], task["mac"], task["length"], task["raw"] = (
                g,
                station.mac,
                length,
                LOCAL_EXPERIMENT_LOADED if raw else 0,
            )
            task["ip"] = int.from_bytes(bytes((10, 0, g >> 8, (g & 255) + 1)), "little")
        if kind == "pcap":
            if capture is None:
                raise VirtfnError("a workload of kind pcap needs a capture", errno_name="EINVAL")
            self._prepare_replay(capture, frames, rewrite)
            if uplink is not None:
                self._strangers = set(self._digests(uplink.bytes, uplink.offsets, uplink.lengths).tolist())
        elif kind == "ping":
            self._prepare_ping(frames or 1000)
        elif kind == "answer":
            self.row["tasks"]["kind"][:n] = ANSWER
        else:
            self._prepare_generated(kind, frames or 0, seed, raw)
            if delays:
                self._prepare_delays()
            if pace_ps:
                self._prepare_pace(pace_ps)
            self.row["window"] = window

    def _table(self, name: str, values: npt.NDArray[np.generic]) -> None:
        self._kept.append(values)
        self.row[name] = address_of(values, f"a workload's table {name}")

    # Generated frames.

    def _prepare_generated(self, kind: str, frames: int, seed: int, raw: bool) -> None:
        n = len(self.stations)
        words = -(-frames // 64) if not raw else 1
        if n * n * words * 8 > _MAX_SEQUENCE_BYTES:
            raise VirtfnError(f"{frames} frames for each of {n} guests: too many to keep track of", errno_name="E2BIG")
        ring = max(int(station.row[0]["tx_size"]) for station in self.stations)
        self.row["ring"], self.row["words"] = ring, words
        self._table("sums", np.zeros((n, ring), np.int64))
        self._seen = np.zeros((n, n, words), np.uint64)
        self._table("seen", self._seen)
        self._plan = plan(kind, n)
        for g, targets in enumerate(self._plan):
            task = self.row["tasks"][g]
            task["kind"] = GENERATE if targets else IDLE
            task["targets"] = len(targets)
            own = frames * len(targets) if kind == "outside" else frames
            task["stop"] = own if targets else 0
            for k, target in enumerate(targets):
                self.row["targets"][g, k] = BROADCAST if target is None else self.stations[target].mac
                self.row["receivers"][g, k] = 0 if target is None else target
            if targets:
                self.total_frames += own
                fill_buffers(self.block.ctypes.data, g, seed)

    def _prepare_clock(self) -> None:
        self._clock = np.zeros(1, CLOCK)
        self.row["clock"] = set_up_clock(self._clock)

    def _prepare_pace(self, pace_ps: int) -> None:
        self._prepare_clock()
        tasks = self.row["tasks"][: len(self.stations)]
        tasks["pace_ps"] = pace_ps // np.maximum(tasks["targets"], 1)
        tasks["began"] = read_clock(int(self.row["clock"]))

    def _prepare_delays(self) -> None:
        n = len(self.stations)
        self._prepare_clock()
        self._table("stamps", np.zeros((n, n, STAMPS), np.int64))
        self._delays = np.zeros((n, DELAYS), np.int64)
        self._table("delays", self._delays)

    def delays(self) -> Iterator[tuple[int, int]]:
        """List how long frames were under way, in ns, and how many took so long, to within a part in FINE."""
        for place, count in enumerate(self._delays.sum(axis=0).tolist()):
            power = max(place // FINE - 1, 0)
            if count:
                yield (place - power * FINE << power) + (1 << power >> 1), count

    # Replayed frames.

    def _prepare_replay(self, capture: Frames, frames: int | None, rewrite: bool) -> None:
        n = len(self.stations)
        count = len(capture)
        if count == 0:
            raise VirtfnError("the capture holds no frames", errno_name="EINVAL")
        store = capture.bytes.copy()
        offsets, lengths = capture.offsets.astype(np.int64), capture.lengths.astype(np.int64)
        starts = [bytes(capture.frame(k)[:12]) for k in range(count)]
        senders, owners = deal([start[6:] for start in starts], [station.mac for station in self.stations])
        if rewrite:
            for k, start in enumerate(starts):
                self._rewrite(store, int(offsets[k]), senders[k], owners.get(start[:6]), int(lengths[k]))
        orders = []
        for g, station in enumerate(self.stations):
            own = np.flatnonzero(np.array(senders) == g)
            if frames is not None and len(own):
                own = own[np.arange(frames) % len(own)]
            self.total_frames += len(own)
            fits = lengths[own] <= int(station.row[0]["longest"])
            sendable = fits & (lengths[own] >= 14)
            left = {"undersize": int((fits & ~sendable).sum()), "oversize": int((~fits).sum())}
            self.refused[g] = {reason: number for reason, number in left.items() if number}
            orders.append(own[sendable])
        order = np.concatenate(orders).astype(np.int64)
        self._table("store", store)
        self._table("offsets", offsets)
        self._table("lengths", lengths)
        self._table("order", order)
        at = 0
        digests = self._digests(store, offsets, lengths)
        for g in range(n):
            task = self.row["tasks"][g]
            sent = len(orders[g])
            task["kind"], task["next"], task["stop"] = REPLAY, at, at + sent
            self._expect(g, order[at : at + sent], store, offsets, digests)
            at += sent
        room = 2 * max(1, len(order))
        self._log = np.zeros((n, room), np.int64)
        self.row["room"] = room
        self._table("log", self._log)

    def _rewrite(self, store: npt.NDArray[np.uint8], at: int, sender: int, receiver: int | None, length: int) -> None:
        """Give a frame its sender's address and, unless it is for a group, its receiver's, or the next guest's."""
        if length < 12:
            return
        if not store[at] & 1:
            if receiver is None or receiver == sender:
                receiver = (sender + 1) % len(self.stations)
            store[at : at + 6] = np.frombuffer(self.stations[receiver].mac.to_bytes(6, "little"), np.uint8)
        store[at + 6 : at + 12] = np.frombuffer(self.stations[sender].mac.to_bytes(6, "little"), np.uint8)

    @staticmethod
    def _digests(
        store: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Digest of each frame as it must arrive: padded to the least size."""
        digests = np.zeros(len(offsets), np.int64)
        padded = np.zeros(MIN_FRAME, np.uint8)
        address = address_of(store)
        for k, (at, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
            if length >= MIN_FRAME:
                digests[k] = digest(address + at, length)
            else:
                padded[:] = 0
                padded[:length] = store[at : at + length]
                digests[k] = digest(address_of(padded), MIN_FRAME)
        return digests

    def _expect(
        self,
        sender: int,
        order: npt.NDArray[np.int64],
        store: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        digests: npt.NDArray[np.int64],
    ) -> None:
        """Note who must receive the frames of a sender: a group's everyone else, unicast whoever has the address."""
        first = offsets[order]
        groups = (store[first] & 1).astype(bool)
        for g, station in enumerate(self.stations):
            if g == sender:
                continue
            own = np.frombuffer(station.mac.to_bytes(6, "little"), np.uint8)
            mine = groups.copy()
            if len(order):
                rows = store[first[:, None] + np.arange(6)]
                mine |= (rows == own).all(axis=1)
            self._expected[g].append((sender, digests[order[mine]]))

    # Pings.

    def _prepare_ping(self, count: int) -> None:
        n = len(self.stations)
        for g in range(n):
            task = self.row["tasks"][g]
            asks = g % 2 == 0 and g + 1 < n
            task["kind"] = PING if asks else ANSWER
            if asks:
                peer = self.row["tasks"][g + 1]
                task["peer_ip"] = peer["ip"]
                task["stop"] = count
                self.total_frames += count

    # Progress and findings.

    @property
    def sent(self) -> int:
        """Frames handed to drivers so far; for pings, requests."""
        if self.kind == "ping":
            return int(self.row["tasks"]["asked"].sum())
        return sum(int(s.row[0]["tx_frames"]) for s in self.stations) - self._sent_before

    @property
    def finished(self) -> bool:
        """Whether every guest has sent all it had to, and every ping has its answer."""
        return not self.unfinished()

    def unfinished(self) -> list[int]:
        """List the guests that have frames left to send, or wait for an answer."""
        left = []
        for g, task in enumerate(self.row["tasks"][: len(self.stations)]):
            done = task["answered"] if task["kind"] == PING else task["next"]
            if task["kind"] in (GENERATE, REPLAY, PING) and done < task["stop"]:
                left.append(g)
        return left

    def findings(self) -> list[Findings]:
        """What each guest got of what was meant for it; missing is before any drop counter explains it."""
        n = len(self.stations)
        found = []
        for g in range(n):
            task = self.row["tasks"][g]
            f = Findings(corrupt=int(task["corrupt"]), repeated=int(task["repeated"]))
            f.reordered = int(task["reordered"])
            if self.kind == "pcap":
                self._compare(g, f)
            elif self.kind == "ping":
                f.missing = int(task["asked"] - task["answered"])
            elif self.kind != "answer":
                f.missing_from = {s: missing for s in range(n) if (missing := self.missing(s, g))}
            if self.kind != "ping":
                f.missing = max(0, sum(f.missing_from.values()) - f.corrupt)
            found.append(f)
        return found

    def flows(self, findings: Sequence[Findings]) -> list[Flow]:
        """List who sent to whom, and how much of it arrived. findings: of each guest."""
        if self.kind == "answer":
            return []
        if self.kind == "ping":
            tasks = self.row["tasks"][: len(self.stations)]
            asking = [g for g, task in enumerate(tasks) if task["kind"] == PING]
            return [Flow(g, g + 1, int(tasks[g]["stop"]), int(tasks[g]["answered"])) for g in asking]
        pairs = [(s, g) for s in range(len(self.stations)) for g in range(len(self.stations))]
        sent = {(s, g): self._sent(s, g) for s, g in pairs}
        return [Flow(s, g, n, n - findings[g].missing_from.get(s, 0)) for (s, g), n in sent.items() if n]

    def _sent(self, sender: int, receiver: int) -> int:
        """Frames that a sender sent to a receiver, by itself or to everyone."""
        if self.kind == "pcap":
            return sum(len(expected) for s, expected in self._expected[receiver] if s == sender)
        total = 0
        for k, target in enumerate(self._plan[sender]):
            if target == receiver or (target is None and receiver != sender):
                total += int(self.row["sequence"][sender, k])
        return total

    def missing(self, sender: int, receiver: int) -> int:
        """Generated frames from a sender that a receiver should have and has not."""
        if self.kind in ("pcap", "ping", "answer"):
            return 0
        total = self._sent(sender, receiver)
        if not total:
            return 0
        return total - int(np.bitwise_count(self._seen[receiver, sender]).sum())

    def _compare(self, g: int, f: Findings) -> None:
        """Compare what a guest logged with what it should have had: by digest, in the order of each sender."""
        had = int(self.row["tasks"][g]["logged"])
        logged = self._log[g, : min(had, self._log.shape[1])]
        places: dict[int, list[int]] = {}
        for i, value in enumerate(logged.tolist()):
            places.setdefault(value, []).append(i)
        for where in places.values():
            where.reverse()
        known: set[int] = set()
        for sender, expected in self._expected[g]:
            last = -1
            known.update(expected.tolist())
            for value in expected.tolist():
                where_left = places.get(value)
                if not where_left:
                    f.missing_from[sender] = f.missing_from.get(sender, 0) + 1
                    continue
                at = where_left.pop()
                f.reordered += at < last
                last = max(last, at)
        for value, left in places.items():
            if value in known:
                f.repeated += len(left)
            elif value not in self._strangers:
                f.corrupt += len(left)
        f.repeated += had - len(logged)
