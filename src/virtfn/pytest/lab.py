"""A lab in the hands of a test: its PFs, VFs, guests and wires, as plain calls.

    lab = virtfn_lab({"pfs": [...], "guests": [...]})
    lab.guest("a").send("b", b"payload")             embedded guests send and receive frame by frame
    assert lab.guest("b").received()
    lab.vf("pf0/vf0").set(vlan=10)                    policy holds when the call returns
    lab.vf("pf0/vf0").drops, lab.vf("pf0/vf0").counters
    lab.guest("linux").run("ip link")                 a guest under QEMU runs commands

The lab goes on only while a call of it is under way: nothing happens behind a test's back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from virtfn.api.byhand import ByHand
from virtfn.api.lab import Lab, load_lab, parse_lab
from virtfn.api.machine import LabPf
from virtfn.api.session import Session
from virtfn.api.session.events import EventDocument
from virtfn.api.session.snapshot import Snapshot
from virtfn.api.session.watching import find_vf
from virtfn.machine.clock import S_PS
from virtfn.machine.ports import VirtfnError
from virtfn.pytest.functions import LivePf, LiveVf
from virtfn.pytest.guest import LiveGuest

__all__ = ["PAIR", "Labs", "LiveLab", "MakeLab", "Seen", "why_no_linux"]

Source = Lab | Mapping[str, object] | str | Path
MakeLab = Callable[..., "LiveLab"]
PAIR: dict[str, object] = {
    "pfs": [{"name": "pf0", "sr-iov": {"total-vfs": 4}}],
    "guests": [{"name": name, "memory-mib": 8, "nic": {"pf": "pf0", "vf": n}} for n, name in enumerate("ab")],
}


class Seen(NamedTuple):
    """A frame that passed a function while it was captured. function: like pf0/vf1, or pf0 for the wire.

    sent: by the function, or received. time_ps: since 1970.
    """

    function: str
    sent: bool
    time_ps: int
    frame: bytes


class Labs:
    """The labs of one test; a `with` block, whose end takes them down."""

    def __init__(self) -> None:
        self._closes = ExitStack()

    def __enter__(self) -> Labs:
        return self

    def __exit__(self, *_: object) -> None:
        self._closes.close()

    def bring_up(self, source: Source | None = None, **sections: object) -> LiveLab:
        """Bring a lab up.

        source: a lab, a dictionary of its keys, the text of a lab file, the path of one, or nothing for two guests.
        sections: keys of the lab by name, in place of those of a dictionary. A name and a workload are not needed.
        Raises LabError for a lab that is wrong, VirtfnError if a part refuses.
        """
        session = self._closes.enter_context(Session(_lab(source, sections), by_hand=True))
        session.start()
        return LiveLab(session)


def _lab(source: Source | None, sections: Mapping[str, object]) -> Lab:
    if isinstance(source, Lab | str | Path) and sections:
        raise VirtfnError("sections go with a dictionary; here is a whole lab", errno_name="EINVAL")
    match source:
        case Lab():
            return source
        case str():
            return parse_lab(source, works=False)
        case Path():
            return load_lab(source)
    keys = {"name": "test", "workload": {"kind": "pairs"}, **(PAIR if source is None else source), **sections}
    return parse_lab(_yaml(keys), "the dictionary of the test", Path.cwd(), works=False)


def _yaml(keys: Mapping[str, object]) -> str:
    """Write a lab as YAML: JSON is that, too."""
    try:
        return json.dumps(keys, indent=1)
    except (TypeError, ValueError) as error:
        words = f"a lab is made of dictionaries, lists, text and numbers: {error}"
        raise VirtfnError(words, errno_name="EINVAL") from None


def why_no_linux() -> str:
    """Say why there can be no Linux guests here; empty if there can."""
    from virtfn.api.image import current_image
    from virtfn.vmm.qemu import find_qemu

    try:
        find_qemu()
        current_image()
    except VirtfnError as error:
        return str(error)
    return ""


class LiveLab:
    """A lab that is up."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.hands = ByHand(session.machine, session.clock)
        session.add(self.hands)

    # What there is.

    def pf(self, name: str = "pf0") -> LivePf:
        """Find a PF by its name. Raises VirtfnError (ENODEV) if there is none."""
        return LivePf(self, self.session.machine.pf(name))

    def vf(self, place: str, n: int | None = None) -> LiveVf:
        """Find a VF: `vf("pf0/vf1")`, or `vf("pf0", 1)`. Raises VirtfnError (ENODEV) if there is none."""
        name, number = place, n
        if number is None:
            name, _, digits = place.partition("/vf")
            if not digits.isdecimal():
                raise VirtfnError(f"{place} is no VF like pf0/vf1", errno_name="EINVAL")
            number = int(digits)
        return LiveVf(self, self.session.machine.pf(name), find_vf(self.session.machine, name, number))

    def guest(self, name: str) -> LiveGuest:
        """Find a guest by its name. Raises VirtfnError (ENOENT) if there is none."""
        for run in self.session.machine.guests:
            if run.lab.name == name:
                return LiveGuest(self, run, None)
        for linux in self.session.linux_guests:
            if linux.lab.name == name:
                return LiveGuest(self, None, linux)
        names = ", ".join(guest.name for guest in self.session.lab.guests)
        raise VirtfnError(f"the lab has no guest called {name}; there are {names}", errno_name="ENOENT")

    @property
    def guests(self) -> list[LiveGuest]:
        """All guests, in the lab's order."""
        return [self.guest(guest.name) for guest in self.session.lab.guests]

    # Going on.

    def settle(self, limit_s: float = 5.0) -> None:
        """Let the lab go on until no frame moves any more. Raises VirtfnError (ETIMEDOUT) if that takes longer."""
        self.hands.stir()
        if not self.session.run_until(self.hands.at_rest, int(limit_s * S_PS)):
            raise VirtfnError(f"frames still move after {limit_s:g} s", errno_name="ETIMEDOUT")

    def run_for(self, seconds: float) -> None:
        """Let the lab go on for a time."""
        self.session.run_until(lambda: False, int(seconds * S_PS))

    def wait_until(self, true: Callable[[], object], limit_s: float = 5.0) -> None:
        """Let the lab go on until something is true. Raises VirtfnError (ETIMEDOUT) if it does not become so."""
        if not self.session.run_until(lambda: bool(true()), int(limit_s * S_PS)):
            raise VirtfnError(f"it has not become true within {limit_s:g} s", errno_name="ETIMEDOUT")

    # What happened.

    def events(self, name: str = "") -> list[EventDocument]:
        """Return what has happened so far, the oldest first; name: events of this name alone, like VF_QUARANTINED."""
        told = self.session.events.since(0).events
        return [each.document() for each in told if name in ("", each.event.name)]

    def snapshot(self) -> Snapshot:
        """Return what guests, functions and cards have counted."""
        return self.session.snapshot()

    @contextmanager
    def capture(self) -> Iterator[list[Seen]]:
        """Record what all functions send and receive: the list is full when the block ends."""
        seen: list[Seen] = []
        self.hands.record(lambda pf, n, sent, at, frame: seen.append(_seen(pf, n, sent, at, frame)))
        try:
            yield seen
            self.settle()
        finally:
            self.hands.record(None)


def _seen(pf: LabPf, n: int | None, sent: bool, at: int, frame: bytes) -> Seen:
    return Seen(pf.name if n is None else f"{pf.name}/vf{n}", sent, at, frame)
