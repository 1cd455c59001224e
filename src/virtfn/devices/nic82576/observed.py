"""What observers see of a card: counters, drops, captures and taps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576.ats import AddressTranslation
from virtfn.devices.nic82576.port import Port
from virtfn.devices.nic82576.sight import READ, CardState
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
from virtfn.machine.netports import Captured, Conduct, Moved, Ways
from virtfn.machine.ports import VirtfnError
from virtfn.machine.taps import Tap, TapInterface

__all__ = ["Observed"]


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

    def ways(self, n: int) -> Ways:
        """Count the frames of a VF by the ways that they went, since the start."""
        nic = self.port.nic
        pool = nic["pools"][n]
        out, out_bytes = (int(count) for count in nic["to_wire"][n])
        back, back_bytes = int(pool["gptlbc"]), int(pool["gotlbc"])
        hairpin, hairpin_bytes = int(pool["gprlbc"]), int(pool["gorlbc"])
        wire, wire_bytes = int(pool["gprc"]) - hairpin, int(pool["gorc"]) - hairpin_bytes
        broadcast = int(pool["bprc"])
        return Ways(
            out,
            out_bytes - FCS_BYTES * out,
            back,
            back_bytes - FCS_BYTES * back,
            wire,
            wire_bytes - FCS_BYTES * wire,
            hairpin,
            hairpin_bytes - FCS_BYTES * hairpin,
            int(pool["mprc"]) - broadcast,
            broadcast,
            int(nic["dropped_bytes"][n]),
        )

    def counters(self) -> dict[str, int]:
        """Count what became of frames, by the names of the data plane's counters."""
        counters = {name: int(self.port.nic["counters"][name]) for name in COUNTER_NAMES}
        return {**counters, "forwarded": int(self.port.nic["card"]["forwarded"])}

    def mailbox_messages(self, n: int) -> int:
        """Count messages between a VF and the PF, both ways."""
        return self.port.mailboxes.messages[n]

    def conduct(self, n: int) -> Conduct:
        """Count what the owner of a VF has done."""
        drops = self.port.nic["drops"][n]
        spoofed = int(drops[DROP_MAC_SPOOF]) + int(drops[DROP_VLAN_SPOOF])
        return Conduct(spoofed, int(drops[DROP_MALFORMED]), self.mailbox_messages(n), self.port.vf_resets[n])

    def device_tlb(self) -> dict[str, int]:
        """Count what the device TLB did; nothing where there is none."""
        return dict(self.ats.counts()) if self.ats is not None else {}

    def drops(self, pool: int | None) -> dict[str, int]:
        """Count dropped frames of a pool (None: of the wire) by reason; reasons without any are left out."""
        return _by_reason(self.port.nic["drops"][WIRE if pool is None else pool])

    def all_drops(self) -> dict[str, int]:
        """Count dropped frames of all pools and of the wire by reason."""
        return _by_reason(self.port.nic["drops"].sum(axis=0))

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


def _by_reason(row: npt.NDArray[np.int64]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(DROP_NAMES, row, strict=True) if count}
