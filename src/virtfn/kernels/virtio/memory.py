"""The gate between a front end's addresses and this process: nothing of a front end is touched but through here.

A range never crosses from one region into the next unseen: what is returned ends with the region, and whoever wants
more asks again. Addresses are compared as 64-bit offsets, so no sum of address and length can wrap around.
"""

from __future__ import annotations

from virtfn.kernels._jit import Row, grant, inlined, kernel

__all__ = ["translate"]


@inlined
def translate(v: Row, gpa: int, size: int, write: int) -> tuple[int, int]:
    """Find `size` bytes at address `gpa` of a front end; v: VIRTIO.

    Returns (address here, how many bytes from 1 to `size` lie there), or (0, 0) if that is no memory of it.
    """
    region = v.regions[v.own.hit]
    offset = gpa - region.gpa
    if not 0 <= offset < region.size:
        if not find_region(v, gpa):
            return 0, 0
        region = v.regions[v.own.hit]
        offset = gpa - region.gpa
    run = min(size, region.size - offset)
    grant(region.host + offset, run, write, 0)
    return region.host + offset, run


@kernel
def find_region(v: Row, gpa: int) -> bool:
    """Find the region of an address; it is tried first from now on."""
    for i in range(v.own.regions):
        region = v.regions[i]
        if 0 <= gpa - region.gpa < region.size:
            v.own.hit = i
            return True
    return False
