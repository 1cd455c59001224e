"""What virtual machines of QEMU have in common, whoever starts them: functions at sockets, each with memory of its own.

Each function has an address space of its own, since QEMU tells each about memory by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from virtfn.hw.types import Rid
from virtfn.machine.meter import Meter
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain
from virtfn.machine.wholecard import CardPf, CardVf
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host
from virtfn.vmm.hostcard import Machinery, Member, Placement
from virtfn.vmm.served import ServedFunction, SharedFiles

__all__ = ["ServedVm"]


class ServedVm:
    """One virtual machine. functions: that are served to it; meter: what it costs.

    placements: by PF, how QEMU learns of the VFs that the guest makes.

    room: bytes of memory that it may share, of the host's foreign bytes. Raises VirtfnError when there are not so many
    left.
    """

    def __init__(self, host: Host, name: str, room: int) -> None:
        self.host = host
        self.name = name
        self.functions: dict[Rid, ServedFunction] = {}
        self.meter = Meter()
        self.placements: dict[Rid, Placement] = {}
        self._cards: dict[Rid, list[Rid]] = {}
        self._files = SharedFiles(host.memory, room)

    def address_space(self, rid: Rid) -> Hashable:
        """Name the address space that a function's DMA is in: its own."""
        return self, rid

    def populate(self, domain: DmaDomain) -> None:
        """Map nothing yet: memory is mapped as QEMU tells of it."""

    def inject(self, rid: Rid, address: int, message: int) -> None:
        """Interrupt it by a message of its own, for a function that it has."""
        if rid in self.functions:
            self.functions[rid].send(address, message)

    @property
    def messages(self) -> int:
        """Messages about registers: the exits of this machine."""
        return self.meter.exits

    @property
    def interrupts(self) -> int:
        """Interrupts that were sent to it."""
        return self.meter.read()["interrupts"]

    def _serve(
        self,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        domain: DmaDomain,
        path: Path,
        *,
        mapped: bool,
        emulation: Emulation | None,
    ) -> ServedFunction:
        """Serve a function at a path, and note it. Raises VirtfnError if the socket cannot be had."""
        self.functions[rid] = served = ServedFunction(
            self.host,
            device,
            rid,
            config,
            domain,
            self._files,
            path,
            mapped=mapped,
            meter=self.meter,
            emulation=emulation,
        )
        return served

    @contextmanager
    def _serve_card(
        self, device: Device, pf: CardPf, vfs: Sequence[CardVf], paths: Sequence[Path]
    ) -> Iterator[list[Member]]:
        """Serve the functions of a card at paths, the VFs and then the PF; none of them if what follows fails."""
        made: list[Member] = []
        parts: list[CardPf | CardVf] = [*vfs, pf]
        try:
            for part, path in zip(parts, paths, strict=True):
                # Both ends are often on one processor: QEMU lets it go on after a write only if nothing is mapped.
                served = Member(
                    self.host,
                    device,
                    part.rid,
                    part.config,
                    part.domain,
                    self._files,
                    path,
                    mapped=False,
                    meter=self.meter,
                )
                made.append(served)
                self.functions[part.rid] = served
            yield made
        except BaseException:
            for member in made:
                self.functions.pop(member.function.rid, None)
                member.close()
            raise

    def _place_card(self, made: Sequence[Member], pf: CardPf, vfs: Sequence[CardVf], machinery: Machinery) -> Placement:
        """Let QEMU learn from now on of the VFs of a card that is served."""
        spaces = [(member, vf.config) for member, vf in zip(made, vfs, strict=False)]
        self.placements[pf.rid] = Placement(made[-1], pf.config, spaces, machinery, self.host.clock)
        self._cards[pf.rid] = [member.function.rid for member in made]
        return self.placements[pf.rid]

    def _forget_card(self, rid: Rid) -> list[Rid]:
        """Let QEMU learn no more of a card's VFs, and list the functions that go with one; a VF goes alone."""
        if rid in self.placements:
            self.placements.pop(rid).end()
        return self._cards.pop(rid, [rid])

    def _forget_cards(self) -> None:
        while self.placements:
            self.placements.popitem()[1].end()
