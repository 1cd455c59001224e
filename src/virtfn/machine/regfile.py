"""Run a register map's access rules over a piece of memory, and dispatch the side effects.

A register without a side effect costs no code: its declaration says what a read and a write do. Side effects are
methods of the model, marked `@on_read(Regs.ICR)` and `@on_write(Regs.CTRL)`:

    on_read method:   (index) -> value            called instead of the plain read
    on_write method:  (index, written, old)       called after the store; `written` is what the bus carried

Values rest in `memory`, little-endian, so that kernels and observers see the same bytes; `place` moves words of the map
to other positions in it (ring registers live in pages of their own). Undeclared offsets read 0 and ignore writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from virtfn.hw.bits import Access, Decl, RegMap

__all__ = ["Handlers", "Plain", "RegFile", "on_read", "on_write"]

_Method = TypeVar("_Method", bound=Callable[..., object])
ReadHandler = Callable[[int], int]
WriteHandler = Callable[[int, int, int], None]


def on_read(*decls: Decl) -> Callable[[_Method], _Method]:
    """Mark a method as what a read of these registers does."""

    def mark(method: _Method) -> _Method:
        method.__dict__["_on_read"] = decls
        return method

    return mark


def on_write(*decls: Decl) -> Callable[[_Method], _Method]:
    """Mark a method as what follows a write of these registers."""

    def mark(method: _Method) -> _Method:
        method.__dict__["_on_write"] = decls
        return method

    return mark


class Handlers:
    """Base of a block of the model that has side effects; two claims on one register fail when the class is made."""

    def __init_subclass__(cls) -> None:
        for kind in ("_on_read", "_on_write"):
            claimed: dict[int, str] = {}
            for name, method in vars(cls).items():
                for decl in getattr(method, kind, ()):
                    if id(decl) in claimed:
                        raise TypeError(f"{cls.__name__}: {name} and {claimed[id(decl)]} both claim {decl.name}")
                    claimed[id(decl)] = name


class Plain(NamedTuple):
    """What a register does whose reads have no side effect of the model's.

    at: position in memory. clears, sets: bits that a read clears and sets. hidden: bits that read 0. writable: whether
    writes have no side effect of the model's either. stores: bits that a write stores. drops, raises: bits that a
    written 1 clears and sets.
    """

    at: int
    clears: int
    sets: int
    hidden: int
    writable: bool
    stores: int
    drops: int
    raises: int


class RegFile:
    """The registers of one map.

    memory: (size,) uint8 where values rest. size: bytes of the map's address space. place: (size // 4,) byte position
    in `memory` of each 32-bit word of the map, or None where they are the same.
    """

    def __init__(
        self,
        regmap: type[RegMap],
        memory: npt.NDArray[np.uint8],
        size: int,
        place: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.map = regmap
        self.size = size
        self._memory = memoryview(memory)  # type: ignore[arg-type]
        self._place: list[int] | None = None if place is None else place.tolist()
        self._spots: dict[Decl, tuple[list[int], int]] = {}
        self._masks: dict[int, tuple[int, int, int, int, int, int]] = {}
        self._wide = any(d.width != 32 for d in regmap.DECLS)
        self._byte_owner: dict[int, int] = {}
        self._read: dict[int, ReadHandler] = {}
        self._write: dict[int, WriteHandler] = {}
        self._alias: dict[int, int] = {}
        self._sealed = False
        for decl in regmap.DECLS:
            self._spots[decl] = [self._position(decl.at(i)) for i in range(decl.count)], decl.size
            masks = (
                decl.write_mask,
                decl.mask(Access.W1C, Access.RC_W1C),
                decl.mask(Access.RC, Access.RC_W1C),
                decl.mask(Access.RS),
                decl.mask(Access.W1S),
                decl.mask(Access.WO, Access.SC, Access.RSV),
            )
            for i in range(decl.count):
                at = decl.at(i)
                self._masks[at] = masks
                if self._wide:
                    for byte in range(at, at + decl.size):
                        self._byte_owner[byte] = at
        for at, (decl, i) in regmap.INDEX.items():
            if at != decl.at(i):
                self._alias[at] = decl.at(i)
        self.reset()

    def bind(self, block: Handlers) -> None:
        """Attach the marked methods of `block`.

        Raises TypeError if a register is claimed twice.
        """
        for name in dir(type(block)):
            method = getattr(type(block), name)
            for decl in getattr(method, "_on_read", ()):
                self._claim(self._read, decl, getattr(block, name))
            for decl in getattr(method, "_on_write", ()):
                self._claim(self._write, decl, getattr(block, name))

    def on(self, decl: Decl, *, read: ReadHandler | None = None, write: WriteHandler | None = None) -> None:
        """Attach side effects to one register without a marked method, where many differ by a name only.

        Raises TypeError if the register is claimed twice.
        """
        if read is not None:
            self._claim(self._read, decl, read)
        if write is not None:
            self._claim(self._write, decl, write)

    def _claim(
        self,
        table: dict[int, Callable[..., object]] | dict[int, ReadHandler] | dict[int, WriteHandler],
        decl: Decl,
        method: Callable[..., object],
    ) -> None:
        if self._sealed:
            raise TypeError(f"{decl.name} gets a side effect after all were said to have theirs")
        for i in range(decl.count):
            if decl.at(i) in table:
                raise TypeError(f"{decl.label(i)} is claimed twice")
            table[decl.at(i)] = method  # type: ignore[assignment]

    def limit(self, decl: Decl, index: int, bits: int) -> None:
        """Let software change only `bits` of one register of this file, within what its declaration allows."""
        at = decl.at(index)
        _, _, read_clears, read_sets, _, hidden = self._masks[at]
        clear = decl.mask(Access.W1C, Access.RC_W1C) & bits
        self._masks[at] = decl.write_mask & bits, clear, read_clears, read_sets, decl.mask(Access.W1S) & bits, hidden

    def reset(self, *, keep: tuple[Decl, ...] = ()) -> None:
        """Give every register its reset value, except those in `keep`; no side effect runs."""
        for decl in self.map.DECLS:
            if not any(decl is k for k in keep):
                for i in range(decl.count):
                    self.poke(decl, i, decl.reset)

    def peek(self, decl: Decl, index: int = 0) -> int:
        """Read a stored value from inside the model; no side effect."""
        spots, size = self._spots[decl]
        at = spots[index]
        return int.from_bytes(self._memory[at : at + size], "little")

    def poke(self, decl: Decl, index: int, value: int) -> None:
        """Store a value from inside the model; no side effect."""
        spots, size = self._spots[decl]
        at = spots[index]
        self._memory[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def seal(self) -> None:
        """Say that every register has its side effects: whoever asks which are plain may rely on it."""
        self._sealed = True

    def plain(self, offset: int) -> Plain | None:
        """Tell what the register at `offset` does; None if there is none, or the model has a say in what is read."""
        at = self._alias.get(offset, offset)
        if at in self._read or at not in self._masks:
            return None
        stores, drops, clears, sets, raises, hidden = self._masks[at]
        return Plain(self._position(at), clears, sets, hidden, at not in self._write, stores, drops, raises)

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes as the bus does, side effects included. Undeclared bytes read 0."""
        if size == 4 and not self._wide and not offset & 3:
            at = self._alias.get(offset, offset)
            return self._read_register(at) if at in self._masks else 0
        value = 0
        for at in self._touched(offset, size):
            whole = self._read_register(at)
            shift = (at - offset) * 8
            value |= whole << shift if shift >= 0 else whole >> -shift
        return value & (1 << size * 8) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes as the bus does, side effects included. Undeclared bytes are ignored."""
        if size == 4 and not self._wide and not offset & 3:
            at = self._alias.get(offset, offset)
            if at in self._masks:
                self._write_register(at, value, 0xFFFFFFFF)
            return
        value &= (1 << size * 8) - 1
        lanes = (1 << size * 8) - 1
        for at in self._touched(offset, size):
            shift = (at - offset) * 8
            if shift >= 0:
                self._write_register(at, value >> shift, lanes >> shift)
            else:
                self._write_register(at, value << -shift, lanes << -shift)

    def _position(self, at: int) -> int:
        return at if self._place is None else self._place[at >> 2] + (at & 3)

    def _touched(self, offset: int, size: int) -> list[int]:
        """Starts of the registers that bytes offset..offset+size-1 belong to, ascending."""
        if self._wide:
            return sorted({self._byte_owner[b] for b in range(offset, offset + size) if b in self._byte_owner})
        words = sorted({b & ~3 for b in range(offset, offset + size)})
        return [at for at in (self._alias.get(w, w) for w in words) if at in self._masks]

    def _read_register(self, at: int) -> int:
        handler = self._read.get(at)
        decl, index = self.map.INDEX[at]
        if handler is not None:
            return handler(index)
        _, _, clears, sets, _, hidden = self._masks[at]
        value = self.peek(decl, index)
        left = value & ~clears | sets
        if left != value:
            self.poke(decl, index, left)
        return value & ~hidden

    def _write_register(self, at: int, written: int, lanes: int) -> None:
        store, clear, _, _, raise_, _ = self._masks[at]
        decl, index = self.map.INDEX[at]
        lanes &= (1 << decl.width) - 1
        written &= lanes
        old = self.peek(decl, index)
        store &= lanes
        new = (old & ~store | written & store) & ~(written & clear) | written & raise_
        if new != old:
            self.poke(decl, index, new)
        handler = self._write.get(at)
        if handler is not None:
            handler(index, written | old & ~lanes, old)
