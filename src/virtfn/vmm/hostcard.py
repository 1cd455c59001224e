"""A card with VFs in the hands of a virtual machine that makes the VFs itself: a host of its own.

    guest writes VF Enable ---> PF's socket: the card has VFs ---> placement: QEMU learns where their BARs are
    guest finds VF n       ---> VF n's socket, which was plugged in all the time, and had no vendor until now

QEMU does not know that these functions are one card: what a PF's capability says of VFs is nothing to it. So the BARs
of each VF are written into its configuration space for the guest, and Memory Space Enable after them: as QEMU sees it,
by the guest. That goes by DMA of the PF to the window of configuration space, or, where this DMA does not get there,
past the stopped processors.

Extended capabilities are not there before the first reset: QEMU would take ARI and SR-IOV out of the list.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple, Protocol, TypeVar

from virtfn.hw.pci import EXTENDED_START, Command, Type0, Type1
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.machine.wholecard import PfSpace, VfSpace
from virtfn.vmm.served import ServedFunction
from virtfn.vmm.vfio_user import Client, Going, RegionIndex, Steps

__all__ = ["ConfigWrite", "Machinery", "Member", "Placement"]

T = TypeVar("T")

_PATIENCE_PS = 20 * MS_PS  # a PF that does not master the bus may do so soon
_CLOSING_PS = 2000 * MS_PS  # and nobody waits for BARs that are closed: a reset of the PF takes a second
_TRIES = 3


class ConfigWrite(NamedTuple):
    """A write to configuration space behind a root port: function number, register, 2 or 4 bytes, value."""

    function: int
    offset: int
    size: int
    value: int


class Machinery(Protocol):
    """What a VMM does from outside its guest. Nothing here waits: results come."""

    @property
    def port(self) -> int:
        """Function number on bus 0 of the root port that the card is behind."""

    def config_window(self) -> Future[int]:
        """Find the address of the window of configuration space (ECAM) in memory; a VirtfnError if there is none."""

    def write_config(self, writes: Sequence[ConfigWrite]) -> Future[None]:
        """Write to configuration spaces behind the port, with processors stopped; a VirtfnError if that cannot be."""


class Member(ServedFunction):
    """A function of such a card; extended capabilities are revealed by the first reset.

    after: called in each turn, when its messages were answered and none is in the middle; on_reset: when the machine
    resets it; on_gone: when the machine is gone. obstacle: asked before the first reset, why this machine's guest can
    make no VFs; if it cannot, extended capabilities stay hidden. without_vfs: the answer, in words.
    """

    after: Callable[[], None] | None = None
    on_reset: Callable[[], None] = staticmethod(lambda: None)
    on_gone: Callable[[], None] = staticmethod(lambda: None)
    obstacle: Callable[[], str] = staticmethod(lambda: "")
    without_vfs = ""

    def serve(self, budget: int, going: Going = lambda: True) -> int:
        """Answer messages, and do what comes after them; return how much there was to do."""
        done = super().serve(budget, going)
        if self.after is not None:
            self.after()
        return done

    @property
    def waits(self) -> bool:
        """Whether it has to be served though nobody asks at its socket."""
        return self.after is not None or super().waits

    def region_read(self, region: int, offset: int, count: int) -> Steps[bytes]:
        """Read registers or configuration space."""
        found = yield from super().region_read(region, offset, count)
        if region != RegionIndex.CONFIG or not (self._hidden or self.without_vfs):
            return found
        shown = max(0, EXTENDED_START - offset)
        return found[:shown] + bytes(len(found[shown:]))

    def region_write(self, region: int, offset: int, data: bytes) -> Steps[None]:
        """Write registers or configuration space; what is hidden takes nothing."""
        if region != RegionIndex.CONFIG or offset < EXTENDED_START or not self.without_vfs:
            yield from super().region_write(region, offset, data)

    def reset(self) -> None:
        """Reset the function, as the machine's reset does."""
        if self._hidden:
            self.without_vfs = self.obstacle()
        super().reset()
        self.on_reset()

    def connected(self, client: Client) -> None:
        """Take note of the virtual machine."""
        self.without_vfs = ""
        super().connected(client)

    def disconnected(self) -> None:
        """Stop the function; the next machine finds it as new."""
        super().disconnected()
        self.on_reset()
        self.on_gone()

    @property
    def process(self) -> int:
        """The process that has it plugged in; -1: none has."""
        return -1 if self._client is None else self._client.process

    def forget(self) -> None:
        """Take note that the VF is gone, and what its guest made of it."""
        self.function.forget()
        self._follow_command()

    @property
    def masters(self) -> bool:
        """Whether it masters the bus."""
        self._follow_command()
        return self._masters

    @property
    def reaches_memory(self) -> bool:
        """Whether its DMA goes to memory as it is: it masters the bus, and no IOMMU of the guest's translates.

        Where one does, it is told of what the guest maps for it, and not of memory from address 0 on.
        """
        lowest = None if self._client is None else next(iter(self._client.ranges), None)
        return self.masters and lowest is not None and lowest.iova == 0

    def write_memory(self, address: int, content: bytes) -> Future[None]:
        """Write where the function's DMA goes; a VirtfnError, errno named, comes of what is refused."""
        future: Future[None] = Future()
        if self._client is None:
            future.set_exception(_refusal(errno.ENOTCONN))
        else:
            self._client.dma_write(address, content, lambda _, error: _settle(future, None, error))
        return future

    def read_memory(self, address: int, count: int) -> Future[bytes]:
        """Read where the function's DMA goes; a VirtfnError, errno named, comes of what is refused."""
        future: Future[bytes] = Future()
        if self._client is None:
            future.set_exception(_refusal(errno.ENOTCONN))
        else:
            self._client.dma_read(address, count, lambda found, error: _settle(future, found, error))
        return future


def _refusal(number: int) -> VirtfnError:
    return VirtfnError(f"DMA by messages: {os.strerror(number)}", errno_name=errno.errorcode.get(number, "EIO"))


def _settle(future: Future[T], found: T, number: int) -> None:
    if future.cancelled():  # nobody waits any more
        return
    if number:
        future.set_exception(_refusal(number))
    else:
        future.set_result(found)


class Placement:
    """Keeps what QEMU knows of VFs' BARs equal to what the PF's capability says, as long as the card is plugged in.

    counts: rounds of writes by the way they went, `by dma` and `by ports`, and `failed`. why: of the last that failed,
    until one does not.
    A round begins when the last is over; one that changes nothing is tried a few times, until something else changes.
    The more rounds there have been lately that stop the processors, the longer the next of them waits; the PF pays.
    """

    def __init__(
        self,
        pf: Member,
        space: PfSpace,
        vfs: Sequence[tuple[Member, VfSpace]],
        machinery: Machinery,
        clock: Clock,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.why = ""
        self._pf, self._space, self._vfs = pf, space, list(vfs)
        self._machinery, self._clock = machinery, clock
        self._window: int | None = None
        self._round: Generator[Future[Any], None, None] | None = None
        self._waits: Future[Any] | None = None
        self._look, self._since, self._ended = False, 0, False
        self._rest_ps = self._rested_ps = 0  # how long before the next round by ports, and since when
        self._tried: tuple[ConfigWrite, ...] = ()
        self._tries = 0
        pf.after, pf.on_reset = self.follow, self._machine_was_reset
        space.on_change.append(self._note)
        space.on_vfs.append(self._vfs_changed)
        for member, vf in self._vfs:
            member.on_reset = vf.reset
            vf.on_change.append(self._note)
        self._note()

    def _note(self) -> None:
        if not self._look and not self._ended:
            self._look, self._since = True, self._clock.now()

    def _machine_was_reset(self) -> None:
        """Ask anew where the window is: firmware puts it there."""
        self._window = None
        self._note()

    def _vfs_changed(self, count: int) -> None:
        for member, _ in self._vfs[count:]:
            member.forget()
        self._note()

    def follow(self) -> None:
        """Do the next step, if there is one; it never waits. To be called while no message is in the middle."""
        if self._round is None and self._look:
            self._begin()
        while self._round is not None and (self._waits is None or self._waits.done()):
            try:
                self._waits = next(self._round)
            except StopIteration:
                self._round = self._waits = None
                for _, vf in self._vfs:
                    vf.ours = -1
                self._note()

    def end(self) -> None:
        """Do no more: a round that is under way is given up."""
        self._look, self._ended = False, True
        self.give_up()

    def give_up(self) -> None:
        """Give up what is under way, for a machine that is no more."""
        self.why = ""
        if self._round is not None:
            self._round.close()
            self._round = None
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _begin(self) -> None:
        direct = self._pf.reaches_memory
        writes = tuple(self._changes(early=direct)) if self._pf.connected_now else ()
        if writes != self._tried:
            self._tried, self._tries = writes, 0
        if not writes or self._tries == _TRIES:
            self._look = False
            if not self.why and any(self._opens(write) for write in writes):
                self.why = "QEMU takes what is written, and no VF hears of it; is the card where virtfn has it?"
        elif direct or self._rested(self._patience_ps):
            self._look = False
            self._tries += 1
            commands = {write.function: write.value for write in writes if write.offset == Type0.COMMAND.offset}
            for _, vf in self._vfs:
                vf.ours = commands.get(vf.function, -1)
            self._round = self._place(writes, direct=direct)

    @staticmethod
    def _opens(write: ConfigWrite) -> bool:
        """Tell whether a write lets a VF's BARs answer."""
        return write.offset == Type0.COMMAND.offset and bool(Command(write.value).MEM)

    def _rested(self, patience_ps: int) -> bool:
        """Tell whether a round by ports may begin."""
        now = self._clock.now()
        return now - self._since >= patience_ps and now - self._rested_ps >= self._rest_ps

    @property
    def _patience_ps(self) -> int:
        """How long to wait for a PF whose DMA reaches memory."""
        if not any(self._space.vf_memory(n) for n in range(len(self._vfs))):
            return _CLOSING_PS
        return 0 if self._pf.masters else _PATIENCE_PS  # it is the guest's IOMMU that is in the way

    def _changes(self, *, early: bool) -> Iterator[ConfigWrite]:
        """List what has to be written. early: place BARs of VFs that are not enabled yet, too."""
        for n, (member, vf) in enumerate(self._vfs):
            if not member.connected_now:
                continue
            wanted = self._space.vf_memory(n)
            for bar, shape in vf.bars.items():
                address = self._space.vf_bar(n, bar)
                fits = address + shape.size <= 1 << (64 if shape.wide else 32)  # else no address decodes it
                if (wanted or early) and address and fits and address != vf.bar_address(bar):
                    at = Type0.BAR.at(bar)
                    yield ConfigWrite(vf.function, at, 4, address & 0xFFFFFFFF)
                    if shape.wide and address >> 32 != vf.bar_address(bar) >> 32:
                        yield ConfigWrite(vf.function, at + 4, 4, address >> 32)
            command = Command(vf.read(Type0.COMMAND.offset, 2)).replace(MEM=wanted)
            # A write of ours may have come after one of the guest's, which had made it a bus master meanwhile.
            if wanted != vf.memory_enabled or (wanted and command.BME != vf.told.BME):
                yield ConfigWrite(vf.function, Type0.COMMAND.offset, 2, command.value)

    def _place(self, writes: Sequence[ConfigWrite], *, direct: bool) -> Generator[Future[Any], None, None]:
        ways = [("by dma", self._by_dma)] if direct else []
        for name, way in [*ways, ("by ports", self._by_ports)]:
            try:
                yield from way(writes)
            except (VirtfnError, CancelledError, ValueError, OverflowError) as error:
                self.why = str(error)
            else:
                self.counts[name] += 1
                self.why = ""
                return
        self.counts["failed"] += 1

    def _by_dma(self, writes: Sequence[ConfigWrite]) -> Generator[Future[Any], None, None]:
        if self._window is None:
            found = self._machinery.config_window()
            yield found
            self._window = found.result()
        bus = self._pf.read_memory(self._window + (self._machinery.port << 12) + Type1.SECONDARY.offset, 1)
        yield bus
        behind = self._window + (bus.result()[0] << 20)
        sent = [
            self._pf.write_memory(behind + (function << 12) + offset, value.to_bytes(size, "little"))
            for function, offset, size, value in writes
        ]
        for answer in sent:
            yield answer
        for answer in sent:
            answer.result()

    def _by_ports(self, writes: Sequence[ConfigWrite]) -> Generator[Future[Any], None, None]:
        began = self._clock.now()
        done = self._machinery.write_config(writes)
        try:
            yield done
            done.result()
        finally:
            now = self._clock.now()
            self._pf.allowance.take(now - began)
            forgotten = min((began - self._rested_ps) // S_PS, 32)  # half of it each second
            self._rest_ps = min(max(self._rest_ps >> forgotten, MS_PS) * 2, _CLOSING_PS)
            self._rested_ps = now
