"""Where the NIC's wire leads to: a capture, a tap interface, a peer at a stream socket, another card."""

from virtfn.vmm.uplink.cable import CableEnd, make_cable
from virtfn.vmm.uplink.stream import StreamUplink
from virtfn.vmm.uplink.tap import TapUplink
from virtfn.vmm.uplink.uplink import Burst, PcapUplink, Uplink
from virtfn.vmm.uplink.wire import Wire, open_uplink

__all__ = [
    "Burst",
    "CableEnd",
    "PcapUplink",
    "StreamUplink",
    "TapUplink",
    "Uplink",
    "Wire",
    "make_cable",
    "open_uplink",
]
