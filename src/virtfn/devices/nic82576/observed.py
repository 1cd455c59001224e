"""What observers see of a card: counters, drops, captures and taps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576.ats import AddressTranslation
from virtfn.devices.nic82576.port import Port
from virtfn.devices.nic82576.sight import READ, CardState
from virtfn.devices.nic82576.stormcheck import storm_state
from virtfn.devices.pci import Endpoint, Place
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.i82576 import VFS
from virtfn.hw.types import Rid
from virtfn.kernels.i82576.state import (
    COUNTER_NAMES,
    DROP_MAC_SPOOF,
    DROP_MALFORMED,
    DROP_NAMES,
    DROP_VLAN_SPOOF,
    POOLS,
    TAPS,
    WIRE,
)
from virtfn.machine.netports import Captured, Conduct, InForce, Moved, Tally, Ways
from virtfn.machine.ports import VirtfnError
from virtfn.machine.taps import Tap, TapInterface

__all__ = ["Observed"]

_COUNTED = ["gptc", "gotc", "gprc", "gorc", "mprc", "bprc", "gptlbc", "gotlbc", "gprlbc", "gorlbc"]
"""What a pool counts of a VF's frames, by the names of the card's counters."""


class Observed:
    """The part of a card that observers look at."""

    port: Port
    endpoint: Endpoint
    ats: AddressTranslation | None
    _taps: list[Tap]

    @property
    def vfs(self) -> int:
        """Enabled VFs."""
        raise NotImplementedError

    @property
    def frames(self) -> int:
        """Count the frames that have moved, from and to anyone."""
        return self.port.frames

    def traffic(self) -> npt.NDArray[np.int64]:
        """Count frames from and to each pool, as (POOLS,)."""
        pools = self.port.nic["pools"]
        total: npt.NDArray[np.int64] = pools["gprc"] + pools["gptc"]
        return total

    def moved(self, rid: Rid) -> Moved:
        """Count the frames of a VF's pool, and their bytes, since the start; of the PF: of the whole port."""
        pool = next((n for n in range(VFS) if self.endpoint.rid(Place(0, n)) == rid), None)
        counts = self.port.nic["counters"] if pool is None else self.port.nic["pools"][pool]
        sent, received = int(counts["gptc"]), int(counts["gprc"])
        groups, everybody = int(counts["mprc"]), int(counts["bprc"])
        if pool is not None:
            groups -= everybody  # a VF's counter has both
        return Moved(
            sent,
            int(counts["gotc"]) - FCS_BYTES * sent,
            received,
            int(counts["gorc"]) - FCS_BYTES * received,
            groups,
            everybody,
        )

    def tally(self) -> list[Tally]:
        """Count all of each VF that is enabled, since the start: the numbers are copied first, and then looked at."""
        nic, vfs = self.port.nic, self.vfs
        pools = nic["pools"][:vfs][_COUNTED].tolist()
        wire, dropped_bytes = nic["to_wire"][:vfs].tolist(), nic["dropped_bytes"][:vfs].tolist()
        drops, messages = nic["drops"][:vfs].tolist(), self.port.mailboxes.messages[:vfs]
        return [
            _tally(dict(zip(_COUNTED, pool, strict=True)), *rest)
            for pool, *rest in zip(pools, wire, drops, dropped_bytes, messages, strict=True)
        ]

    def counters(self) -> dict[str, int]:
        """Count what became of frames, by the names of the data plane's counters."""
        row = self.port.nic["counters"]
        counters = dict(zip(row.dtype.names, row.tolist(), strict=True))
        return {name: counters[name] for name in COUNTER_NAMES} | {"forwarded": int(self.port.nic["card"]["forwarded"])}

    def mailbox_messages(self, n: int) -> int:
        """Count messages between a VF and the PF, both ways."""
        return self.port.mailboxes.messages[n]

    def conduct(self) -> list[Conduct]:
        """Count what the owner of each VF has done."""
        port = self.port
        drops = port.nic["drops"][:VFS].tolist()
        return [
            Conduct(row[DROP_MAC_SPOOF] + row[DROP_VLAN_SPOOF], row[DROP_MALFORMED], messages, resets)
            for row, messages, resets in zip(drops, port.mailboxes.messages, port.vf_resets, strict=False)
        ]

    def device_tlb(self) -> dict[str, int]:
        """Count what the device TLB did; nothing where there is none."""
        return dict(self.ats.counts()) if self.ats is not None else {}

    @property
    def link_up(self) -> bool:
        """Whether the port has a link."""
        return self.port.link

    def in_force(self, n: int | None) -> InForce:
        """Read what is in force for a VF; of the PF (None), its address alone."""
        return self.port.l2switch.in_force(n)

    def drops(self, pool: int | None) -> dict[str, int]:
        """Count dropped frames of a pool (None: of the wire) by reason; reasons without any are left out."""
        return _by_reason(self.port.nic["drops"][WIRE if pool is None else pool].tolist())

    def all_drops(self) -> dict[str, int]:
        """Count dropped frames of all pools and of the wire by reason."""
        return _by_reason(self.port.nic["drops"].sum(axis=0).tolist())

    def start_capture(self) -> None:
        """Record what each function sends and receives from now on; `take_capture` must keep up."""
        self.port.nic["port"]["capture"] = 1

    def stop_capture(self) -> None:
        """Record no more; what was recorded can still be taken."""
        self.port.nic["port"]["capture"] = 0

    def take_capture(self) -> list[Captured]:
        """Take the frames recorded since the last call."""
        nic = self.port.nic
        stored = nic["captured"]
        taken = [
            Captured(
                None if interface == WIRE else interface,
                bool(outbound),
                time_ps,
                stored[offset : offset + length].copy(),
            )
            for interface, outbound, length, offset, time_ps in nic["capture"][: nic["port"]["capture_head"]].tolist()
        ]
        nic["port"]["capture_head"] = nic["port"]["capture_bytes"] = 0
        return taken

    def state(self) -> CardState:
        """Read all that decides what becomes of a frame, as JSON."""
        port, peek = self.port.nic["port"], self.port.registers.peek
        driven = sum(1 << q for q, row in enumerate(self.port.nic["tx"]) if row["regs"])
        return {
            "vfs": self.vfs,
            "wire_up": bool(port["wire_up"]),
            "self_loop": bool(port["self_loop"]),
            "blocked": int(port["blocked"]),
            "driven": driven,
            "storm": storm_state(port, self.port.now()),
            "registers": {decl.name: [peek(decl, i) for i in range(decl.count)] for decl in READ},
        }

    def tap_interfaces(self) -> list[TapInterface]:
        """List what taps can see frames at: each pool that is a VF's, those of the PF, and the wire."""
        vfs = self.vfs
        pools = [TapInterface(n, n if n < vfs else None) for n in range(POOLS)]
        return [*pools, TapInterface(WIRE, None, wire=True)]

    def drop_reasons(self) -> tuple[str, ...]:
        """List the reasons for which it drops frames, as taps number them."""
        return DROP_NAMES

    def open_tap(self, points: int, interfaces: int, snap: int, size: int) -> Tap:
        """Copy frames for another process from now on.

        Raises VirtfnError if there are as many taps as a card has (EBUSY), or the system refuses the memory.
        """
        row = next((row for row in self.port.nic["taps"] if not row["ring"]), None)
        if row is None:
            raise VirtfnError(f"{TAPS} captures of this card run already; end one", errno_name="EBUSY")
        tap = Tap(row, points, interfaces, snap, size)
        self._taps.append(tap)
        tap.on_close.append(lambda: self._forget_tap(tap))
        self._settle_taps()
        return tap

    def _forget_tap(self, tap: Tap) -> None:
        self._taps.remove(tap)
        self._settle_taps()

    def _settle_taps(self) -> None:
        wanted = 0
        for row in self.port.nic["taps"]:
            wanted |= int(row["points"])
        self.port.nic["seen"]["points"] = wanted

    def close_taps(self) -> None:
        """End all taps: their readers hear of it."""
        for tap in list(self._taps):
            tap.close()


def _by_reason(row: list[int]) -> dict[str, int]:
    return {name: count for name, count in zip(DROP_NAMES, row, strict=True) if count}


def _tally(pool: dict[str, int], to_wire: list[int], drops: list[int], dropped_bytes: int, messages: int) -> Tally:
    """Make the tally of a VF of its pool's counters; their bytes are with frame check sequences."""
    out, out_bytes = to_wire
    hairpin, broadcast = pool["gprlbc"], pool["bprc"]
    wire, wire_bytes = pool["gprc"] - hairpin, pool["gorc"] - pool["gorlbc"]
    groups = pool["mprc"] - broadcast  # a VF's counter has both
    moved = Moved(
        pool["gptc"],
        pool["gotc"] - FCS_BYTES * pool["gptc"],
        pool["gprc"],
        pool["gorc"] - FCS_BYTES * pool["gprc"],
        groups,
        broadcast,
    )
    ways = Ways(
        out,
        out_bytes - FCS_BYTES * out,
        pool["gptlbc"],
        pool["gotlbc"] - FCS_BYTES * pool["gptlbc"],
        wire,
        wire_bytes - FCS_BYTES * wire,
        hairpin,
        pool["gorlbc"] - FCS_BYTES * hairpin,
        groups,
        broadcast,
        dropped_bytes,
    )
    return Tally(moved, ways, _by_reason(drops), messages)
