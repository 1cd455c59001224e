"""The pump: keeps NICs and the interfaces of virtual machines going, while whoever calls it waits for something else.

A turn answers messages, moves frames, and lets the IOMMU tell what it met. Between turns a kernel does the part of this
that comes with frames all the time, and rests (`kernels/pump.py`).

Functions take turns in answering, a slice of time each, from an allowance (`allowance.py`): beside others at work, one
that asks for much is answered slowly; alone, at once. What nobody's message asked for, such as faults, has one too.
"""

from __future__ import annotations

import select
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from virtfn.hw.types import Rid
from virtfn.kernels.card import CHORES, EV_INTERRUPT, EV_UPLINK, URGENT
from virtfn.kernels.link import SCRATCH_BYTES
from virtfn.kernels.posix import POLLIN
from virtfn.kernels.pump import NOBODY, PUMP, answer_at_once, run_pump
from virtfn.kernels.ranges import address_of, row_address
from virtfn.machine.clock import MS_PS, US_PS, work_clock
from virtfn.machine.netports import Card, Served, Vectors
from virtfn.machine.ports import Actor
from virtfn.vmm.allowance import SLICE_PS, WHOLE_PS, Allowance, refill
from virtfn.vmm.emulated import EmulatedCard
from virtfn.vmm.host import Host
from virtfn.vmm.served import ServedFunction
from virtfn.vmm.uplink import Wire

__all__ = ["HasFunctions", "Pump", "Stack"]

_BUDGET = 64
_MESSAGES = 8  # of a function in a turn: the others wait meanwhile
_LIMIT_PS = 5 * MS_PS  # whoever waits looks again after this
_MIRROR_PS = MS_PS // 2  # Python alone sees what a mirrored machine hands over
_DEBT_PS = MS_PS // 2  # as long as somebody has to wait for others, who may have finished
_REFILL_PS = MS_PS // 5
_WANTED_PS = 2 * MS_PS  # who has had something to do so lately may have more
_PINGS_PS = 50 * MS_PS  # so long, where one step of another would hold it up: between pings, too
_AGAIN_PS = 150 * US_PS  # for QEMU to take an answer to its guest, and what that asks next back
_LONG_PS = MS_PS  # of a step, beyond the slice


class HasFunctions(Protocol):
    """Whoever has functions at sockets."""

    @property
    def functions(self) -> Mapping[Rid, ServedFunction]:
        """The functions, by routing ID."""


class Stack(Protocol):
    """What stands on a NIC, for virtual machines that have no function of it.

    Its cards are served first, then its bridge.
    """

    @property
    def cards(self) -> Sequence[EmulatedCard]:
        """Cards made for virtual machines."""

    @property
    def bridge(self) -> Served:
        """What connects them, and front ends, with the NIC."""

    @property
    def frames(self) -> int:
        """Count the frames that front ends have sent; cheap enough to be asked all the time."""

    def answer(self) -> int:
        """Answer messages of front ends; return how many."""

    def kicks(self) -> Sequence[int]:
        """List descriptors that can be read when front ends have frames: to be served."""

    def doors(self) -> Sequence[int]:
        """List descriptors that can be read when there are messages: to be answered."""


class Pump(Actor):
    """Turns for the NICs `nics`, the virtual machines `vms`, the NICs' `wires` and `stacks`; all may grow."""

    def __init__(
        self,
        host: Host,
        nics: Sequence[Card],
        vms: Sequence[HasFunctions],
        wires: Sequence[Wire] = (),
        stacks: Sequence[Stack] = (),
    ) -> None:
        self._host = host
        self._stacks = stacks
        self._nics = nics
        self._vms = vms
        self._wires = wires
        self._state = np.zeros(1, PUMP)
        row_address(self._state, "the pump's state")
        self._scratch = np.zeros(SCRATCH_BYTES, np.uint8)
        address_of(self._scratch, "room for a message")
        self._chores = Allowance()
        self._first = 0
        self._now = host.clock.now
        self._worked = work_clock(host.clock)
        self._refilled_ps = self._now()
        self._slice: tuple[ServedFunction | None, int, int] = None, 0, 0
        self._total = self._by_front_ends = 0
        self._moved_ps = self._others_ps = -_PINGS_PS
        self._counts: dict[int, npt.NDArray[np.int64]] = {}

    def _functions(self) -> list[ServedFunction]:
        return [served for vm in self._vms for served in vm.functions.values()]

    def _stacked(self) -> list[Served]:
        """List what stands on NICs: it is served before them."""
        return [part for stack in self._stacks for part in (*stack.cards, stack.bridge)]

    def _cards(self) -> list[Card]:
        return [*self._nics, *(emulated.card for stack in self._stacks for emulated in stack.cards)]

    def turn(self, now: int = 0) -> int:
        """Do what there is to do, and return how much it was."""
        done = self._answer() + sum([stack.answer() for stack in self._stacks])
        for part in self._stacked():
            part.settle()
        for nic in self._nics:
            done += nic.serve(_BUDGET)[0]
        done += sum(wire.serve(_BUDGET)[0] for wire in self._wires)
        self._host.serve_iommu()
        return done

    def _answer(self) -> int:
        """Answer messages of those whose turn it is; return how many."""
        functions = self._functions()
        now = self._now()
        if now - self._refilled_ps >= _REFILL_PS:
            refill([self._chores, *[served.allowance for served in functions]], now - self._refilled_ps)
            self._refilled_ps = now
        if not functions:
            return 0
        done, self._first = 0, (self._first + 1) % len(functions)
        asking = _asking([fd for served in functions if (fd := served.server.fileno()) >= 0])
        for served in functions[self._first :] + functions[: self._first]:
            if served.server.fileno() not in asking and not served.waits:
                continue
            allowance = served.allowance
            if allowance.left_ps <= 0 and self._must_wait(served, functions, now):
                continue
            self._slice = served, now, 0
            worked = self._worked()
            answered = served.serve(_MESSAGES, self._going)
            if answered:
                answered += self._answer_more(served)
            if answered:
                done += answered
                served.carrier.settle()  # filters that it had changed are its work, too
            began, now = now, self._now()
            allowance.take(now - began)
            if answered:
                allowance.last_ps = now
                if self._worked() - worked > max(self._slice[2] - began, SLICE_PS) + _LONG_PS:
                    allowance.long_ps = now
        return done

    def _answer_more(self, served: ServedFunction) -> int:
        """Answer what comes at once: a driver that sets a card up asks again as soon as it has its answer."""
        answered = 0
        card = served.carrier
        cards = np.array([card.address], np.int64)
        while self._going() and (fd := served.server.fileno()) >= 0:
            asked = np.array([fd | POLLIN], np.int64)
            address_of(asked, "who may ask again")
            links = np.array([[served.lend(self._vectors(served)), 0]], np.int64)
            limit = self._slice[2] - self._now()
            accesses, other, fired = answer_at_once(cards, links, asked, limit, _AGAIN_PS, self._scratch.ctypes.data)
            served.take_back()
            if fired:
                card.handle(EV_INTERRUPT)
            more = served.serve(_MESSAGES, self._going) if other else 0
            answered += accesses + more
            if not more:
                break
        return answered

    def _vectors(self, served: ServedFunction) -> Vectors:
        """Tell what kernels may know of a function's interrupts: none where somebody watches messages."""
        vectors = served.carrier.vectors(served.function.rid)
        return vectors if self._host.iommu.interrupts.on_message is None else vectors._replace(bits=0)

    def _going(self) -> bool:
        """Tell whether the function that is served now has time left."""
        served, began, until = self._slice
        if not until:
            until = began + (WHOLE_PS if self._alone(served, began) else SLICE_PS)
            self._slice = served, began, until
        return self._now() < until

    def _frames_move(self, now: int, lately: int = _WANTED_PS) -> bool:
        """Tell whether frames have moved lately."""
        total = sum([nic.frames for nic in self._nics]) + sum([stack.frames for stack in self._stacks])
        if total != self._total:
            self._total, self._moved_ps = total, now
        return now - self._moved_ps < lately

    def _alone(self, served: ServedFunction | None, now: int) -> bool:
        """Tell whether nobody else has had anything to do lately."""
        others = (other.allowance for other in self._functions() if other is not served)
        return not self._frames_move(now) and all(now - other.last_ps >= _WANTED_PS for other in others)

    def _must_wait(self, served: ServedFunction, functions: Sequence[ServedFunction], now: int) -> bool:
        """Tell whether one that is in debt has to let others go first, who are not; else it starts anew."""
        # A step of a millisecond or more would hold a neighbour up who wants something now and then.
        lately = _PINGS_PS if now - served.allowance.long_ps < 2 * _PINGS_PS else _WANTED_PS
        others = (other.allowance for other in functions if other is not served and not other.allowance.in_debt)
        if any(now - other.last_ps < lately for other in others) or self._others_move(functions, now, lately):
            return True
        served.allowance.left_ps = 0
        return False

    def _others_move(self, functions: Sequence[ServedFunction], now: int, lately: int) -> bool:
        """Tell whether frames have moved lately for anyone who is not in debt."""
        if not self._frames_move(now, lately):
            return False
        for n, nic in enumerate(self._cards()):
            counts = nic.traffic()
            moved = counts != self._counts.get(n, counts)
            self._counts[n] = counts
            for served in functions:
                if served.allowance.in_debt and served.function.device is nic:
                    function = nic.vectors(served.function.rid).function
                    moved[function if function < len(moved) else slice(None)] = False
            if moved.any():
                self._others_ps = now
        by_front_ends = sum([stack.frames for stack in self._stacks])
        if by_front_ends != self._by_front_ends:
            self._by_front_ends, self._others_ps = by_front_ends, now
        return now - self._others_ps < lately

    def __call__(self) -> None:
        """Take a turn, then move frames and rest for some milliseconds, or until there is more: a tick."""
        self.turn()
        self.rest(_LIMIT_PS)

    def rest(self, limit_ps: int) -> None:
        """Let kernels do what they can, and rest, until Python is needed or `limit_ps` is over."""
        limit_ps = min(limit_ps, _LIMIT_PS)
        parts: list[Served] = [*self._stacked(), *self._nics]
        functions = [served for served in self._functions() if served.server.fileno() >= 0]
        links = np.zeros((len(functions), 2), np.int64)
        numbers = {id(part): n for n, part in enumerate(parts)}
        links[:, 1] = [numbers[id(served.carrier)] for served in functions]
        servers = [served.server.fileno() for served in functions]
        asked = []
        now = self._now()
        for served, fd in zip(functions, servers, strict=True):
            if served.mirror.running:
                limit_ps = min(limit_ps, _MIRROR_PS)
            waits = served.allowance.in_debt and self._must_wait(served, functions, now)
            asked.append(NOBODY if waits else fd)
            if waits:
                limit_ps = min(limit_ps, _DEBT_PS)
        cabled = self._cabled(numbers)
        urgent = URGENT if self._wires else URGENT & ~EV_UPLINK
        waits = any(emulated.faults_wait for stack in self._stacks for emulated in stack.cards)
        if self._chores.in_debt or self._host.faults_wait or waits:
            urgent &= ~CHORES
            limit_ps = min(limit_ps, _DEBT_PS)
        kicks = [fd for stack in self._stacks for fd in stack.kicks()]
        asked += [*kicks, *(fd for stack in self._stacks for fd in stack.doors())]
        asked += [fd for fd in (wire.fileno() for wire in self._wires) if fd >= 0]
        waited = np.array([fd | POLLIN for fd in asked], np.int64)
        address_of(waited, "what is waited for")
        cards = np.array([part.address for part in parts], np.int64)
        events = np.zeros(len(cards), np.int64)
        until = now + limit_ps
        while True:
            links[:, 0] = [served.lend(self._vectors(served)) for served in functions]
            events[:] = 0
            run_pump(
                self._state.ctypes.data,
                self._scratch.ctypes.data,
                cards,
                cabled,
                links,
                waited,
                len(kicks),
                events,
                urgent,
                limit_ps,
            )
            for served in functions:
                served.take_back()
            self._handle(parts, events)
            told = int(np.bitwise_or.reduce(events, initial=0)) & urgent
            limit_ps = until - self._now()
            if told & ~EV_UPLINK or self._stacks or limit_ps < 0:
                return
            carried = sum([wire.serve(_BUDGET)[0] for wire in self._wires])
            answered = self._answer()  # who fills a cable holds up nobody's messages
            if not (carried or answered) or servers != [served.server.fileno() for served in functions]:
                return
            if any(served.mirror.running for served in functions):
                return

    def _cabled(self, numbers: Mapping[int, int]) -> npt.NDArray[np.int64]:
        """Find the card at the other end of each one's wire, where kernels may carry frames. numbers: by identity."""
        cabled = np.full(len(numbers), -1, np.int64)
        for wire in self._wires:
            if (far := wire.far_card) is not None:
                cabled[numbers[id(wire.nic)]] = numbers.get(id(far), -1)
        return cabled

    def _handle(self, parts: Sequence[Served], events: npt.NDArray[np.int64]) -> None:
        """Do what kernels asked for, on account of nobody in particular."""
        for part, event in zip(parts, events.tolist(), strict=True):
            if event:
                began = self._now()
                part.handle(event)
                if event & CHORES:
                    self._chores.take(self._now() - began)


def _asking(descriptors: Iterable[int]) -> set[int]:
    """Find those that can be read."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(0)}
