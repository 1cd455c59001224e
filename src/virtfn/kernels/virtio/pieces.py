"""Lists of pieces of memory: take bytes off the front, copy from one list to another."""

from __future__ import annotations

from virtfn.kernels._jit import copy_bytes, kernel, load64, store64
from virtfn.kernels.virtio.state import PIECE_BYTES

__all__ = ["gather", "peel", "put_piece", "scatter"]


@kernel
def put_piece(at: int, address: int, size: int) -> None:
    """Write a piece. at: address of its place in a list."""
    store64(at, address)
    store64(at + 8, size)


@kernel
def peel(pieces: int, first: int, target: int, size: int) -> int:
    """Move `size` bytes from the front of a list, which has so many, to `target`; return what is its first piece now.

    What is left of a piece stays; a piece of which nothing is left is skipped.
    """
    while size > 0:
        at = pieces + first * PIECE_BYTES
        address = load64(at)
        length = load64(at + 8)
        run = min(size, length)
        copy_bytes(target, address, run)
        target += run
        size -= run
        if run == length:
            first += 1
        else:
            put_piece(at, address + run, length - run)
    return first


@kernel
def gather(target: int, at: int, size: int) -> None:
    """Copy the first `size` bytes of a list to one place. at: address of its first piece."""
    while size > 0:
        run = min(size, load64(at + 8))
        copy_bytes(target, load64(at), run)
        target += run
        size -= run
        at += PIECE_BYTES


@kernel
def scatter(target: int, source: int, size: int) -> None:
    """Copy the first `size` bytes of one list to another, which has room. target, source: of the first pieces."""
    to = load64(target)
    room = load64(target + 8)
    at = load64(source)
    left = load64(source + 8)
    while size > 0:
        run = min(min(room, left), size)
        copy_bytes(to, at, run)
        size -= run
        to += run
        room -= run
        at += run
        left -= run
        if size > 0 and room == 0:
            target += PIECE_BYTES
            to = load64(target)
            room = load64(target + 8)
        if size > 0 and left == 0:
            source += PIECE_BYTES
            at = load64(source)
            left = load64(source + 8)
