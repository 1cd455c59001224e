"""A PF given whole to one guest, as in the days before VFs: what the guest finds, an ordinary card.

    000-03f  virtual, as for a VF; memory BARs only
    040-fff  the PF's own capabilities, passed through; but for those in HIDDEN, which are not in the list

Hidden is what makes more functions of one or reaches beyond it (SR-IOV, ARI, ATS, page requests), and MSI, whose
message would have to be the host's: MSI-X serves, and its table is virtual.
"""

from __future__ import annotations

from typing import ClassVar

from virtfn.hw.bits import RegMap
from virtfn.hw.pci import ROM_BAR, Ari, Ats, Msi, PageRequests, SrIov
from virtfn.iovm.pcim import Found, FoundVf
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.iovm.walk import ConfigBus

__all__ = ["WholeConfig"]


class WholeConfig(VirtualConfig):
    """A PF as its only guest sees it; a `ConfigSpace`."""

    HIDDEN: ClassVar[tuple[type[RegMap], ...]] = (Msi, Ari, SrIov, Ats, PageRequests)

    def __init__(self, bus: ConfigBus, found: Found) -> None:
        bars = [bar for bar in found.bars if bar.bar != ROM_BAR and not bar.io]
        ids = found.vendor_id, found.device_id, found.class_code, found.revision
        super().__init__(bus, FoundVf(found.rid, found.rid, 0, *ids, bars))
