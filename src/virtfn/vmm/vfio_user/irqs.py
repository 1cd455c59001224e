"""Interrupts of a client: eventfds by type and vector, masks, and what waits behind a mask.

    trigger --> masked? --yes--> pending --unmask--+
                  | no                             |
                  +------> eventfd of the vector <-+        automasked types: masked from here on

An eventfd that is replaced or taken away is closed. A full one is signalled already, and waited for by nobody:
`eventfds.py`. What a client triggers by itself is bounded by the interrupts that there are.

Spec: vfio-user protocol, DEVICE_SET_IRQS; linux/vfio.h, VFIO_DEVICE_SET_IRQS.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from virtfn.vmm.vfio_user.eventfds import Signals, is_eventfd
from virtfn.vmm.vfio_user.messages import IRQ_SET, IrqFlags, IrqSet, at_start, check
from virtfn.vmm.vfio_user.regions import Irq


@dataclass(slots=True)
class _Vector:
    eventfds: dict[IrqSet, int] = field(default_factory=dict)  # by the action that signals each
    masked: bool = False
    pending: bool = False


class Interrupts:
    """All interrupts of one client. types: the device's interrupt types, by index; most: eventfds that it may give."""

    def __init__(self, types: Mapping[int, Irq], signals: Signals | None, most: int) -> None:
        self._types = types
        self._signals = signals
        self._most = most
        self._vectors: dict[tuple[int, int], _Vector] = {}

    # What the device does.

    def trigger(self, index: int, vector: int) -> bool:
        """Raise an interrupt; False if it was masked, or the client has not asked for it."""
        state = self._vectors.get((index, vector))
        if state is None:
            return False
        if state.masked:
            state.pending = True
            return False
        eventfd = state.eventfds.get(IrqSet.TRIGGER)
        if eventfd is None:
            return False
        if self._types[index].flags & IrqFlags.AUTOMASKED:
            state.masked = True
        self._signal(eventfd)
        return True

    def wanted(self, index: int, vector: int) -> bool:
        """Tell whether the client has an eventfd for an interrupt."""
        state = self._vectors.get((index, vector))
        return state is not None and IrqSet.TRIGGER in state.eventfds

    def masked(self, index: int, vector: int) -> bool:
        """Tell whether the client has masked an interrupt."""
        state = self._vectors.get((index, vector))
        return state is not None and state.masked

    def mask(self, index: int, vector: int) -> None:
        """Mask an interrupt; tells the client if it wants to know."""
        state = self._vectors.setdefault((index, vector), _Vector())
        if not state.masked:
            state.masked = True
            self._tell(state, IrqSet.MASK)

    def unmask(self, index: int, vector: int) -> None:
        """Unmask an interrupt, and raise it if it waited."""
        state = self._vectors.setdefault((index, vector), _Vector())
        if not state.masked:
            return
        state.masked = False
        self._tell(state, IrqSet.UNMASK)
        if state.pending:
            state.pending = False
            self.trigger(index, vector)

    def _tell(self, state: _Vector, action: IrqSet) -> None:
        eventfd = state.eventfds.get(action)
        if eventfd is not None:
            self._signal(eventfd)

    def _signal(self, eventfd: int) -> None:
        if self._signals is not None:
            self._signals.signal(eventfd)

    # What the client does.

    def set(self, body: bytes, fds: list[int]) -> None:
        """Serve a SET_IRQS. fds: the descriptors that came; those that are used are taken from the list.

        Raises RefusedError; nothing has changed then.
        """
        argsz, flags, index, start, count = at_start(IRQ_SET, body)
        data, kind, action = body[IRQ_SET.size :], IrqSet(flags & IrqSet.DATA), IrqSet(flags & IrqSet.ACTION)
        check(argsz >= IRQ_SET.size, "irq-argsz")
        check(flags == kind | action and flags.bit_count() == 2 and bool(kind) and bool(action), "irq-flags")
        if count == 0:
            check(kind is IrqSet.NONE and action is IrqSet.TRIGGER and start == 0, "irq-count")
            check(not data, "wrong-size")
            self._tear_down(index)
            return
        irq = self._types.get(index, Irq())
        check(start + count <= irq.count, "irq-beyond-count")
        check(action is IrqSet.TRIGGER or irq.flags & IrqFlags.MASKABLE != 0, "irq-not-maskable")
        check(len(data) == (count if kind is IrqSet.BOOL else 0), "wrong-size")
        if kind is IrqSet.EVENTFD:
            check(irq.flags & IrqFlags.EVENTFD != 0, "irq-without-eventfd")
            self._assign(action, index, start, count, fds)
            return
        act = self._action(action)
        for n in range(count):
            if kind is IrqSet.NONE or data[n]:
                act(index, start + n)

    def _action(self, action: IrqSet) -> Callable[[int, int], object]:
        match action:
            case IrqSet.MASK:
                return self.mask
            case IrqSet.UNMASK:
                return self.unmask
            case _:
                return self.trigger

    def _assign(self, action: IrqSet, index: int, start: int, count: int, fds: list[int]) -> None:
        """Give vectors eventfds for an action; those for which none came have none any more."""
        check(len(fds) <= count, "irq-too-many-fds")
        check(all(map(is_eventfd, fds)), "irq-not-an-eventfd", text="the descriptor is not an eventfd")
        keys = [(index, start + n) for n in range(count)]
        held = sum(len(state.eventfds) for state in self._vectors.values())
        held -= sum(key in self._vectors and action in self._vectors[key].eventfds for key in keys)
        check(held + len(fds) <= self._most, "irq-too-many-eventfds", errno.ENOSPC)
        new = list(fds)
        fds.clear()
        for n, key in enumerate(keys):
            state = self._vectors.get(key)
            old = state.eventfds.pop(action, None) if state else None
            if old is not None:
                os.close(old)
            if n < len(new):
                self._vectors.setdefault(key, _Vector()).eventfds[action] = new[n]

    def _tear_down(self, index: int) -> None:
        for key in [k for k in self._vectors if k[0] == index]:
            for eventfd in self._vectors.pop(key).eventfds.values():
                os.close(eventfd)

    def close(self) -> None:
        """Close all eventfds; nothing can be raised any more."""
        for index in {k[0] for k in self._vectors}:
            self._tear_down(index)
