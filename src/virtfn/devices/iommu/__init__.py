"""The IOMMU: VT-d DMA remapping for every requester of the machine."""

from virtfn.devices.iommu.unit import IommuUnit

__all__ = ["IommuUnit"]
