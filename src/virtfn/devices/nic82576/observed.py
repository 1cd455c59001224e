"""What observers see of a card: counters, drops, and what passed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576.ats import AddressTranslation
from virtfn.devices.nic82576.port import Port
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
    WIRE,
)
from virtfn.machine.netports import Captured, Conduct, Moved

__all__ = ["Observed"]


class Observed:
    """The part of a card that observers look at."""

    port: Port
    endpoint: Endpoint
    ats: AddressTranslation | None

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
        return Moved(sent, int(counts["gotc"]) - FCS_BYTES * sent, received, int(counts["gorc"]) - FCS_BYTES * received)

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


def _by_reason(row: npt.NDArray[np.int64]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(DROP_NAMES, row, strict=True) if count}
