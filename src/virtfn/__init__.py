"""SR-IOV in software: a NIC cut into functions, the IOMMU that makes them safe, and the drivers on both sides."""

__version__ = "0.1.0"
