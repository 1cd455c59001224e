"""Split I/O's half in the host: back ends of virtio front ends, and the bridge between them."""

from virtfn.devices.virtio.backend import OFFERED, BackEnd
from virtfn.devices.virtio.bridge import Bridge

__all__ = ["OFFERED", "BackEnd", "Bridge"]
