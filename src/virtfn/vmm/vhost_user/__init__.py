"""vhost-user: network back ends for virtual machines of QEMU, over a UNIX socket.

A `Switch` is a learning bridge; `listen` gives it a port at a socket, to which QEMU connects a virtio network device.
Frames move in compiled code; messages are answered at once, in the turns of whoever runs the switch.

Linux only. Reference: docs/reference/vhost-user.md.
"""

from virtfn.vmm.vhost_user.limits import Limits
from virtfn.vmm.vhost_user.messages import OFFERED_PROTOCOL, ProtocolFeatures, Request
from virtfn.vmm.vhost_user.server import Server
from virtfn.vmm.vhost_user.switch import Switch

__all__ = ["OFFERED_PROTOCOL", "Limits", "ProtocolFeatures", "Request", "Server", "Switch"]
