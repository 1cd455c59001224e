"""PFs and VFs of a lab that is in the hands of a test."""

from __future__ import annotations

import enum
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from virtfn.api.byhand import FarEnd
from virtfn.api.machine import LabPf
from virtfn.hw.types import format_rid, parse_mac
from virtfn.iovm.iovm import Vf
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from virtfn.pytest.guest import LiveGuest
    from virtfn.pytest.lab import LiveLab

__all__ = ["LivePf", "LiveVf"]


class LivePf:
    """A PF of a lab that is up."""

    def __init__(self, lab: LiveLab, pf: LabPf) -> None:
        self._lab, self._pf = lab, pf

    @property
    def name(self) -> str:
        """Its name in the lab."""
        return self._pf.name

    @property
    def address(self) -> str:
        """Its PCI address, like 0000:01:00.0."""
        return format_rid(self._pf.nic.pf_rid)

    @property
    def vfs(self) -> list[LiveVf]:
        """Its VFs."""
        return [LiveVf(self._lab, self._pf, vf) for vf in self._pf.vfs]

    @property
    def drops(self) -> dict[str, int]:
        """Frames that the card has dropped, by reason: docs/reference/drops.md."""
        return self._pf.nic.all_drops()

    @property
    def counters(self) -> dict[str, int]:
        """What became of frames: `forwarded` to one function, `flooded` to several, and more."""
        return self._pf.nic.counters()

    @cached_property
    def _far_end(self) -> FarEnd:
        return self._lab.hands.far_end(self._pf)

    def send(self, *frames: bytes) -> None:
        """Let frames arrive from the wire. Raises VirtfnError (EBUSY) if the lab leads the wire elsewhere."""
        self._far_end.put(frames)
        self._lab.settle()

    def received(self) -> list[bytes]:
        """Take the frames that have left by the wire since the last call. Raises VirtfnError as `send`."""
        end = self._far_end
        self._lab.settle()
        return end.take()

    def set_link(self, up: bool) -> None:
        """Pull the cable, or put it back: the guests learn of it."""
        self._pf.nic.set_carrier(up)
        self._lab.settle()

    def reset(self) -> None:
        """Reset the card under its guests, as `ethtool -r` or a hung transmitter would; they recover by themselves."""
        self._driver_of_ours("reset").reset()
        self._lab.settle()

    def unbind(self) -> None:
        """Take the PF's driver away: its guests lose their link, and keep their VFs."""
        self._driver_of_ours("stop").stop()
        self._lab.settle()

    def bind(self) -> None:
        """Bring the PF's driver back: policy holds as before, and the guests recover by themselves."""
        self.reset()

    def _driver_of_ours(self, method: str) -> Any:
        if not self._pf.driven or not hasattr(self._pf.driver, method):
            raise VirtfnError(f"{self.name} is not driven by the host", errno_name="EBUSY")
        return self._pf.driver


def _read(now: object, name: str, value: object) -> object:
    """Read a setting that is given as text: an address, or one of several words."""
    if name == "mac" and isinstance(value, str):
        return parse_mac(value)
    if isinstance(now, enum.Enum) and isinstance(value, str):
        words = [str(each.value) for each in type(now)]
        if value not in words:
            raise VirtfnError(f"{name} is {' or '.join(words)}, not {value}", errno_name="EINVAL")
        return type(now)(value)
    return value


class LiveVf:
    """A VF of a lab that is up."""

    def __init__(self, lab: LiveLab, pf: LabPf, vf: Vf) -> None:
        self._lab, self._pf, self._vf = lab, pf, vf

    @property
    def name(self) -> str:
        """How it is called: pf0/vf1."""
        return f"{self._pf.name}/vf{self._vf.index}"

    @property
    def address(self) -> str:
        """Its PCI address, like 0000:02:10.0."""
        return format_rid(self._vf.rid)

    @property
    def state(self) -> str:
        """`free`, `assigned` or `quarantined`."""
        return self._vf.state.value

    @property
    def guest(self) -> LiveGuest | None:
        """Who has it."""
        return None if self._vf.vm is None else self._lab.guest(self._vf.vm.name)

    @property
    def policy(self) -> Any:
        """The policy in force, as a copy: its fields are the names that `set` takes."""
        return self._vf.policy

    def set(self, **settings: object) -> None:
        """Change its policy, and nothing else of it: mac, vlan, qos, spoof_check, trust, max_tx_rate and so on.

        Raises VirtfnError: EINVAL for a setting that there is not, and what the PF's driver refuses; then all is as it
        was.
        """
        before = self._vf.policy
        given = {name: _read(getattr(before, name, None), name, value) for name, value in settings.items()}
        try:
            wanted = replace(before, **given)  # type: ignore[arg-type]  # the driver judges them
        except TypeError:
            unknown = ", ".join(name for name in settings if not hasattr(before, name))
            raise VirtfnError(f"a VF has no setting {unknown}", errno_name="EINVAL") from None
        driver = self._vf.driver
        try:
            driver.set_policy(self._vf.index, wanted)
        except VirtfnError:
            with suppress(VirtfnError):
                driver.set_policy(self._vf.index, before)
            raise
        self._lab.settle()

    @property
    def drops(self) -> dict[str, int]:
        """Frames that were dropped for it, by reason: docs/reference/drops.md."""
        return dict(self._pf.nic.drops(self._vf.index))

    @property
    def counters(self) -> dict[str, int]:
        """What it has sent and received: tx_frames, tx_bytes, rx_frames, rx_bytes; and mailbox_messages."""
        moved = self._pf.nic.moved(self._vf.rid)._asdict()
        return {**moved, "mailbox_messages": self._pf.nic.mailbox_messages(self._vf.index)}

    def quarantine(self, why: str = "") -> None:
        """Stop it: nothing in or out, and no link, until `release`. Raises VirtfnError if nobody has it."""
        self._lab.session.machine.watch.quarantine(self._vf, why)
        self._lab.settle()

    def release(self) -> None:
        """Let it run again. Raises VirtfnError if it is not stopped."""
        self._lab.session.machine.watch.release(self._vf)
        self._lab.settle()
