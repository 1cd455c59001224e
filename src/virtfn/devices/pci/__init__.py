"""What every SR-IOV card has in common: its functions behind one link, the SR-IOV unit, and MSI-X."""

from virtfn.devices.pci.endpoint import Endpoint, Physical, Place
from virtfn.devices.pci.msix import MsiXTable
from virtfn.devices.pci.sriov import VF_SETTLE_PS, SrIovUnit

__all__ = ["VF_SETTLE_PS", "Endpoint", "MsiXTable", "Physical", "Place", "SrIovUnit"]
