"""Bits with names: the one notion behind registers, capabilities, table entries and mailbox words.

    class RXDCTL(Register):
        \"\"\"Receive Descriptor Control.\"\"\"
        PTHRESH = Field(4, 0)                 # msb, lsb, as datasheets print them
        ENABLE = Field(25)                    # one bit

    class Regs(RegMap):
        RXDCTL = array(0xC028, RXDCTL, stride=0x40, count=16, reset=0x10000, spec="82576 8.10.8")

    RXDCTL(0x02000008).ENABLE            -> 1
    RXDCTL.of(ENABLE=1, PTHRESH=8).value -> 0x02000008
    RXDCTL.ENABLE.mask                   -> 0x02000000
    Regs.RXDCTL.at(3)                    -> 0xC0E8
    Regs.describe(0xC0E8, 0x02000008)    -> "RXDCTL[3] = 0x02000008 (PTHRESH=8, ENABLE=1)"

The device model, the drivers, the tracer, the documents and the tests all read these declarations; nothing else
in the tree says where a bit is. This module is the only metaprogramming in virtfn.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Self, overload

__all__ = ["Access", "Decl", "Field", "RegMap", "Register", "Status", "array", "reg"]


class Access(enum.Enum):
    """What a register does on access; a behaviour outside this set is a handler of the model."""

    RO = "read only"
    RW = "read, write"
    WO = "write only, reads 0"
    RC = "read clears"
    RS = "read sets"
    W1C = "write 1 clears"
    RC_W1C = "read clears, write 1 clears"
    W1S = "write 1 sets"
    SC = "self-clearing: a written 1 acts and reads back 0"
    RSV = "reserved, reads 0"


class Status(enum.Enum):
    """How much of a register the model does."""

    MODELLED = "modelled"
    STORED = "stored"
    ABSENT = "absent"


class Field:
    """Name the bits `msb`..`lsb` of a register; `access` overrides the register's own.

    stored: they have no effect, in a register that is modelled otherwise.
    """

    __slots__ = ("access", "lsb", "msb", "name", "stored", "values")

    def __init__(
        self,
        msb: int,
        lsb: int | None = None,
        values: type[enum.IntEnum] | None = None,
        *,
        access: Access | None = None,
        stored: bool = False,
    ) -> None:
        self.msb = msb
        self.lsb = msb if lsb is None else lsb
        self.values = values
        self.access = access
        self.stored = stored
        self.name = ""
        if not 0 <= self.lsb <= self.msb < 256:
            raise ValueError(f"field bits {msb}..{lsb} are out of order")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def width(self) -> int:
        """Number of bits."""
        return self.msb - self.lsb + 1

    @property
    def mask(self) -> int:
        """The field's bits set, in place."""
        return ((1 << self.width) - 1) << self.lsb

    def get(self, value: int) -> int:
        """Extract the field from a register value."""
        return (value & self.mask) >> self.lsb

    def put(self, number: int) -> int:
        """Place `number` at the field's bits.

        Raises ValueError if it does not fit.
        """
        if not 0 <= number < 1 << self.width:
            raise ValueError(f"{self.name} holds {self.width} bits, not {number:#x}")
        return number << self.lsb

    @overload
    def __get__(self, instance: None, owner: type[Register]) -> Field: ...
    @overload
    def __get__(self, instance: Register, owner: type[Register]) -> int: ...
    def __get__(self, instance: Register | None, owner: type[Register]) -> Field | int:
        return self if instance is None else self.get(instance.value)


class Register:
    """One value with named bits. Subclass it and declare `Field`s; instances never change. NAMED: all their bits."""

    __slots__ = ("value",)
    FIELDS: ClassVar[tuple[Field, ...]] = ()
    NAMED: ClassVar[int] = 0

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def __init_subclass__(cls) -> None:
        fields = sorted((f for f in vars(cls).values() if isinstance(f, Field)), key=lambda f: f.lsb)
        for low, high in pairwise(fields):
            if high.lsb <= low.msb:
                raise TypeError(f"{cls.__name__}: {low.name} and {high.name} overlap")
        cls.FIELDS = tuple(fields)
        cls.NAMED = sum(f.mask for f in fields)

    @classmethod
    def field(cls, name: str) -> Field:
        """Find a field by name.

        Raises AttributeError naming the right ones.
        """
        for f in cls.FIELDS:
            if f.name == name:
                return f
        names = ", ".join(f.name for f in cls.FIELDS) or "no fields"
        raise AttributeError(f"{cls.__name__} has no field {name}; it has {names}")

    @classmethod
    def of(cls, **fields: int) -> Self:
        """Build a value from fields; the rest is zero."""
        return cls(0).replace(**fields)

    def replace(self, **fields: int) -> Self:
        """Return a copy with some fields changed."""
        value = self.value
        for name, number in fields.items():
            f = self.field(name)
            value = value & ~f.mask | f.put(number)
        return type(self)(value)

    def __int__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Register) and type(self) is type(other) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self), self.value))

    def __str__(self) -> str:
        parts = []
        for f in self.FIELDS:
            number = f.get(self.value)
            if number:
                shown = str(number) if number < 10 else f"{number:#x}"
                if f.values is not None:
                    shown = next((v.name for v in f.values if v == number), shown)
                parts.append(f"{f.name}={shown}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value:#x}: {self})"


@dataclass(slots=True, eq=False)
class Decl:
    """One line of a register map: where, how many, what kind, and how honestly it is modelled.

    `writable` limits which bits software can change; by default all of a read-write register. `alias` names other
    windows on the same registers as (offset, stride, count).
    """

    offset: int
    kind: type[Register]
    access: Access = Access.RW
    reset: int = 0
    width: int = 32
    count: int = 1
    stride: int = 0
    writable: int | None = None
    alias: tuple[int, int, int] | None = None
    spec: str = ""
    status: Status = Status.STORED
    about: str = ""
    is_array: bool = False
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return self.width // 8

    def at(self, index: int = 0) -> int:
        """Offset of element `index`.

        Raises IndexError outside 0..count-1.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} elements, not {index}")
        return self.offset + index * self.stride

    def mask(self, *kinds: Access) -> int:
        """Bits whose access is one of `kinds`, over fields and the register's own kind for the rest."""
        whole = (1 << self.width) - 1
        owned = 0
        for f in self.kind.FIELDS:
            if f.access is not None:
                owned |= f.mask
        bits = whole & ~owned if self.access in kinds else 0
        for f in self.kind.FIELDS:
            if f.access in kinds:
                bits |= f.mask
        return bits

    @property
    def write_mask(self) -> int:
        """Bits that a write stores."""
        bits = self.mask(Access.RW, Access.RC, Access.RS)
        return bits if self.writable is None else bits & self.writable

    def label(self, index: int) -> str:
        """Name for people: `RXDCTL[3]`, `CTRL`."""
        return f"{self.name}[{index}]" if self.is_array else self.name


def reg(
    offset: int,
    kind: type[Register] = Register,
    access: Access = Access.RW,
    *,
    reset: int = 0,
    width: int = 32,
    writable: int | None = None,
    alias: int | None = None,
    spec: str = "",
    status: Status = Status.STORED,
    about: str = "",
) -> Decl:
    """Declare one register of a map; `alias` is a second offset that reaches it."""
    window = None if alias is None else (alias, 0, 1)
    return Decl(offset, kind, access, reset, width, 1, 0, writable, window, spec, status, about)


def array(
    offset: int,
    kind: type[Register] = Register,
    access: Access = Access.RW,
    *,
    stride: int,
    count: int,
    reset: int = 0,
    width: int = 32,
    writable: int | None = None,
    alias: tuple[int, int, int] | None = None,
    spec: str = "",
    status: Status = Status.STORED,
    about: str = "",
) -> Decl:
    """Declare `count` like registers, `stride` bytes apart."""
    return Decl(offset, kind, access, reset, width, count, stride, writable, alias, spec, status, about, True)


class RegMap:
    """A register file as a class of declarations; duplicate and misaligned offsets fail at import.

    A large map may be written as several plain classes, a chapter each, that the map inherits.
    """

    DECLS: ClassVar[tuple[Decl, ...]] = ()
    INDEX: ClassVar[dict[int, tuple[Decl, int]]] = {}

    def __init_subclass__(cls) -> None:
        members = {name: member for base in reversed(cls.__mro__) for name, member in vars(base).items()}
        decls = tuple(sorted((d for d in members.values() if isinstance(d, Decl)), key=lambda d: d.offset))
        index: dict[int, tuple[Decl, int]] = {}
        taken: dict[int, str] = {}
        for decl in decls:
            for i in range(decl.count):
                at = decl.at(i)
                if at % decl.size:
                    raise TypeError(f"{cls.__name__}.{decl.label(i)} is misaligned at {at:#x}")
                for byte in range(at, at + decl.size):
                    if byte in taken:
                        raise TypeError(f"{cls.__name__}.{decl.label(i)} overlaps {taken[byte]} at {byte:#x}")
                    taken[byte] = decl.label(i)
                index[at] = (decl, i)
        for decl in decls:
            if decl.alias is not None:
                offset, stride, count = decl.alias
                for i in range(count):
                    at = offset + i * stride
                    if at in taken:
                        raise TypeError(f"{cls.__name__}: alias of {decl.label(i)} overlaps {taken[at]} at {at:#x}")
                    taken[at] = f"alias of {decl.label(i)}"
                    index[at] = (decl, i)
        cls.DECLS = decls
        cls.INDEX = index

    @classmethod
    def lookup(cls, offset: int) -> tuple[Decl, int] | None:
        """Find the register and index at `offset`, through aliases; None if none is declared there."""
        return cls.INDEX.get(offset)

    @classmethod
    def describe(cls, offset: int, value: int) -> str:
        """Put an access into words; an undeclared offset is shown as such."""
        found = cls.INDEX.get(offset)
        if found is None:
            return f"[{offset:#06x}] = {value:#010x} (undeclared)"
        decl, i = found
        fields = str(decl.kind(value))
        digits = decl.width // 4 + 2
        return f"{decl.label(i)} = {value:#0{digits}x}" + (f" ({fields})" if fields else "")

    @classmethod
    def elements(cls) -> Iterator[tuple[Decl, int, int]]:
        """Yield (declaration, index, offset) of every register, aliases not repeated."""
        for decl in cls.DECLS:
            for i in range(decl.count):
                yield decl, i, decl.at(i)
