"""The record of chains under way, which the client keeps for a back end that may end in between and start anew.

    a ring:  features | version, descriptors, last batch, used index | for each descriptor: in flight, next, counter

Rings are served in order here: what is under way is what lies behind the used index, and that is in the ring itself. So
the record says of no chain that it is in flight, no frame costs more for it, and a back end that comes after this one
begins at the used index: what was given back is not taken again, and what was not is. A record in which chains are in
flight is another back end's, which had them out of order, and is refused.

Spec: vhost-user protocol (QEMU, docs/interop/vhost-user.rst), section on inflight I/O tracking.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from struct import Struct

from virtfn.kernels.virtio.state import MOST_SIZE
from virtfn.machine.virtio import RX, TX
from virtfn.vmm.vfio_user.memory import check_file
from virtfn.vmm.vfio_user.messages import RefusedError
from virtfn.vmm.vhost_user.messages import BadMessageError, check

__all__ = ["check_record", "new_record"]

_RING = Struct("=QHHHH")
_CHAIN_BYTES = 16
_ALIGN = 64
_VERSION = 1
_RINGS = max(RX, TX) + 1
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _ring_bytes(size: int) -> int:
    return -(-(_RING.size + size * _CHAIN_BYTES) // _ALIGN) * _ALIGN


def _check_shape(rings: int, size: int) -> None:
    check(0 < rings <= _RINGS, "no-such-ring")
    check(0 < size <= MOST_SIZE, "ring-size")


def new_record(rings: int, size: int) -> tuple[int, int]:
    """Make a record for so many rings of `size` descriptors. Returns (descriptor of its file, bytes).

    Raises BadMessageError.
    """
    _check_shape(rings, size)
    one = _RING.pack(0, _VERSION, size, 0, 0).ljust(_ring_bytes(size), b"\0")
    try:
        fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as e:
        raise BadMessageError("inflight-no-memory", str(e)) from None
    try:
        os.ftruncate(fd, len(one) * rings)
        os.pwrite(fd, one * rings, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as e:
        os.close(fd)
        raise BadMessageError("inflight-no-memory", str(e)) from None
    return fd, len(one) * rings


def check_record(fd: int, offset: int, nbytes: int, rings: int, size: int) -> None:
    """Check that a record is one, and that no chain is in flight by it. It is read, and not kept.

    Raises BadMessageError.
    """
    _check_shape(rings, size)
    step = _ring_bytes(size)
    check(nbytes >= step * rings and offset % mmap.PAGESIZE == 0 and offset + nbytes < 1 << 62, "inflight-size")
    try:
        check_file(fd, offset, nbytes, mmap.PROT_READ)
        record = os.pread(fd, step * rings, offset)
    except (RefusedError, OSError) as e:
        raise BadMessageError("inflight-not-a-memory-file", str(e)) from None
    check(len(record) == step * rings, "inflight-size")
    for ring in range(rings):
        _, version, count, _, _ = _RING.unpack_from(record, ring * step)
        check((version, count) in ((0, 0), (_VERSION, size)), "inflight-version")
        first = ring * step + _RING.size
        check(not any(record[first : first + size * _CHAIN_BYTES : _CHAIN_BYTES]), "inflight-out-of-order")
