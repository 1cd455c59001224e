"""Work: what frames cost, so that turns are as long as what is done in them, not as the number of frames.

A unit is about a nanosecond of a 3 GHz core. Exactness does not matter: what matters is that nothing a driver can ask
for is far cheaper here than in truth. It is counted, not measured, so that a run can be repeated.
"""

from __future__ import annotations

from virtfn.kernels._jit import part

__all__ = [
    "CHAIN_WORK",
    "CLASSIFY_WORK",
    "DESCRIPTOR_WORK",
    "FAULT_WORK",
    "FRAME_WORK",
    "GENERAL_WORK",
    "LOCAL_WORK",
    "ROUTE_WORK",
    "SEGMENT_WORK",
    "SWITCH_WORK",
    "WALK_WORK",
    "copy_work",
    "sum_work",
]

FRAME_WORK = 32  # a frame, whatever its size, to one receiver
GENERAL_WORK = 96  # a descriptor or a frame that is no part of a run
ROUTE_WORK = 64  # a decision where frames with these addresses go
DESCRIPTOR_WORK = 24  # one more of a chain
CHAIN_WORK = 96  # a chain that has to be gathered, besides its descriptors and bytes
SEGMENT_WORK = 256  # a segment of a large send, besides its bytes
SWITCH_WORK = 96  # a frame to the wire, to several, or to nobody
CLASSIFY_WORK = 96  # a look into the headers of an IP frame
LOCAL_WORK = 80  # a frame, whatever it carries, that `local.py` gives to a pool
WALK_WORK = 64  # a page walk
FAULT_WORK = 128  # a request that was refused


@part
def copy_work(nbytes: int) -> int:
    """Tell the work of copying."""
    return nbytes >> 4


@part
def sum_work(nbytes: int, polynomial: bool) -> int:
    """Tell the work of a checksum: a sum, or a polynomial's remainder byte by byte."""
    return nbytes << 1 if polynomial else nbytes >> 1
