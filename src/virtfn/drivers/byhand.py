"""Frames one by one: put into a driver's rings and taken out of them by Python, for tests and for who has few."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import MIN_FRAME
from virtfn.kernels.netdev import BATCH, ENTRY_BYTES
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import VirtfnError

__all__ = ["put_frames", "take_frames"]

_NetdevKernel = Callable[[int, int], int]
_HEADER = 14
_TAG_AT, _TAG_KIND = 12, b"\x81\x00"


def put_frames(row: npt.NDArray[np.void], frames: Sequence[bytes], room: _NetdevKernel, send: _NetdevKernel) -> int:
    """Put frames into the transmit ring, filled up to the least size; return how many found room.

    row: (1,), begins with a NETDEV row. room, send: its kernels. Raises VirtfnError: EMSGSIZE for a frame that is
    shorter than a header, or longer than the driver sends; ENETDOWN for an interface that is not up.
    """
    netdev, address = row[0], int(row.ctypes.data)
    if not netdev["up"]:
        raise VirtfnError("the interface is down", errno_name="ENETDOWN")
    for frame in frames:
        if not _HEADER <= len(frame) <= int(netdev["longest"]):
            words = f"a frame has {_HEADER} to {int(netdev['longest'])} bytes here, not {len(frame)}"
            raise VirtfnError(words, errno_name="EMSGSIZE")
    size, step = int(netdev["tx_size"]), int(netdev["buffer_bytes"])
    lengths = view_bytes(int(netdev["tx_lengths"]), 8 * size).view(np.int64)
    taken = frames[: max(room(address, 0), 0)]
    for i, frame in enumerate(taken):
        slot = (int(netdev["tx_tail"]) + i) % size
        body = frame.ljust(MIN_FRAME, b"\0")
        view_bytes(int(netdev["tx_buffers"]) + slot * step, len(body))[:] = np.frombuffer(body, np.uint8)
        lengths[slot] = len(body)
    if taken:
        send(address, len(taken))
    return len(taken)


def take_frames(row: npt.NDArray[np.void], take: _NetdevKernel, give_back: _NetdevKernel) -> list[bytes]:
    """Take all received frames, with the tags that the driver took out put back."""
    netdev, address = row[0], int(row.ctypes.data)
    frames: list[bytes] = []
    while netdev["up"] and (count := take(address, BATCH)):
        listed = view_bytes(int(netdev["taken"]), BATCH * ENTRY_BYTES).view(np.int64).reshape(-1, ENTRY_BYTES // 8)
        for at, length, tag in listed[:count].tolist():
            body = view_bytes(at, length).tobytes() if length else b""
            if body and netdev["bounce"] and tag >= 0:
                body = body[:_TAG_AT] + _TAG_KIND + tag.to_bytes(2, "big") + body[_TAG_AT:]
            if body:
                frames.append(body)
        give_back(address, count)
    return frames
