"""What an I/O model is: one way for guests to reach a physical NIC. A module of this package for each.

    split         front-end driver in the guest, back end in Dom0, which copies, bridges and drives the NIC
    direct        a card of the guest's own, made by the VMM: every register access traps
    passthrough   the NIC, whole, to one guest
    sriov         a VF for each guest

`MODELS` names the modules; each has a class `Model`. To add one, write its module, and name it there and in the schema
of labs. Spec: the survey's chapters on I/O virtualization; the models are its figures 1 to 3 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from virtfn.cards import Model as CardModel
from virtfn.drivers.policy import VfPolicy
from virtfn.drivers.ports import BoundDriver
from virtfn.hw.types import Mac, Rid
from virtfn.iomodels.hoststack import STACK_BYTES, HostStack
from virtfn.iovm.iovm import HostVm, Iovm, Vf
from virtfn.iovm.pcim import Found, Pcim
from virtfn.machine.meter import Meter
from virtfn.machine.netports import Card, Moved, NetDriver, Served
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain
from virtfn.vmm.guest import Emulation, Guest
from virtfn.vmm.host import Host
from virtfn.vmm.qemu import VirtioNic

__all__ = ["MODELS", "Connection", "IoModel", "Nic", "Plug", "VirtualMachine", "Wish", "open_model"]

MODELS = ("split", "direct", "passthrough", "sriov")


class VirtualMachine(HostVm, Protocol):
    """A virtual machine of another process, whoever starts it."""

    meter: Meter

    def plug(
        self,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        domain: DmaDomain,
        *,
        mapped: bool = True,
        emulation: Emulation | None = None,
    ) -> object:
        """Hot-add a function, whose DMA is in `domain`. emulation: of one that the VMM makes itself."""

    def inject(self, rid: Rid, address: int, message: int) -> None:
        """Interrupt it by a message of its own, for a function that it has."""

    def door(self, name: str) -> Path:
        """Return where the socket of a part is to be."""

    def connect(self, network: VirtioNic) -> None:
        """Plug a virtio network device in. Raises VirtfnError if that cannot be."""


class Parts(Protocol):
    """The machine that all this is in."""

    host: Host
    pcim: Pcim
    iovm: Iovm


@dataclass(slots=True)
class Nic:
    """A physical NIC: its card, what PCIM has found of it, and its PF's driver.

    stack: the host's own network stack on it, once a model has asked for one; stack_bytes: of memory that it gets.
    """

    model: CardModel
    card: Card
    found: Found
    driver: BoundDriver
    stack_bytes: int = STACK_BYTES
    stack: HostStack | None = None

    def host_stack(self, parts: Parts, name: str) -> HostStack:
        """Return the host's stack on it, made if there is none. name: of who runs it. Raises VirtfnError as it does."""
        if self.stack is None:
            self.stack = HostStack(
                parts.host,
                parts.pcim,
                parts.iovm,
                self.model,
                self.card,
                self.found,
                self.driver,
                name,
                self.stack_bytes,
            )
        return self.stack


@dataclass(frozen=True, slots=True)
class Wish:
    """What a guest is to get. mac: its address, unless the policy has one. vf: which, and under which policy.

    mapped: let a virtual machine map its ring registers.
    """

    mac: Mac
    vf: int = 0
    policy: VfPolicy = field(default_factory=VfPolicy)
    mapped: bool = True


def _nothing() -> dict[str, int]:
    return {}


def _none() -> int:
    return 0


@dataclass(slots=True)
class Connection:
    """A guest's interface to the NIC. address: how reports name it. drops: of its frames, by reason.

    messages: to and from the PF's driver. claims: how often it asked for what is another's. vf: that it has, if any.
    """

    guest: Guest
    driver: NetDriver
    address: str
    drops: Callable[[], dict[str, int]] = _nothing
    messages: Callable[[], int] = _none
    claims: Callable[[], int] = _none
    vf: Vf | None = None


@dataclass(slots=True)
class Plug:
    """A virtual machine's interface to the NIC, which its own driver finds.

    mac: its address. moved: counts frames that it sent and received. connected: whether somebody is at its back end;
    refusal: why it was refused something last, in words; None for both: its function knows. The rest is as of a
    `Connection`.
    """

    vm: VirtualMachine
    mac: Mac
    address: str
    moved: Callable[[], Moved]
    drops: Callable[[], dict[str, int]]
    messages: Callable[[], int] = _none
    claims: Callable[[], int] = _none
    vf: Vf | None = None
    connected: Callable[[], bool] | None = None
    refusal: Callable[[], str] | None = None


class IoModel(Protocol):
    """One way for guests to reach one NIC.

    served: what is served before the NIC, and the host's stack on it, when frames move.
    """

    @property
    def served(self) -> Sequence[Served]:
        """Cards that are not the NIC, in order."""
        return ()

    def connect(self, guest: Guest, wish: Wish) -> Connection:
        """Give a guest its interface, whose driver is bound and not started.

        Raises VirtfnError for a guest too many, and as all do that take part.
        """

    def start(self, connection: Connection) -> None:
        """Bring a guest's interface up. Raises VirtfnError as its driver does."""

    def disconnect(self, connections: Sequence[Connection]) -> None:
        """Take interfaces back from their guests. Raises VirtfnError for what does not come to rest."""

    def plug(self, vm: VirtualMachine, wish: Wish) -> Plug:
        """Give a virtual machine its interface; for one that has none yet, and has not booted.

        Raises VirtfnError for a guest too many, and as all do that take part.
        """

    def unplug(self, plugs: Sequence[Plug]) -> None:
        """Take interfaces back whose machines have ended. Raises VirtfnError for what does not come to rest."""

    def close(self) -> None:
        """Let go of everything, whatever state it is in; nothing is left by default."""


class _Module(Protocol):
    Model: Callable[[Parts, Nic], IoModel]


def open_model(name: str, parts: Parts, nic: Nic) -> IoModel:
    """Open the model of that name, in MODELS, on a NIC. Raises VirtfnError as the model does."""
    return cast(_Module, import_module(f"virtfn.iomodels.{name}")).Model(parts, nic)
