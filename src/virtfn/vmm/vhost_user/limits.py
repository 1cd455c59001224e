"""How much one client may have, and whether it is trusted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one client may have.

    max_fds: descriptors in a message; max_output: bytes that it has not taken yet; max_bytes: of memory that its files
    take together; max_files: how many files. trusted: take memory that the client can take away, too, as DPDK's is: a
    file that could shrink, or large pages. A client that does so kills the process.
    """

    max_fds: int = 8
    max_output: int = 64 << 10
    max_bytes: int = 1 << 42
    max_files: int = 64
    trusted: bool = False
