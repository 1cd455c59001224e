"""A guest of a lab that is in the hands of a test: embedded, frame by frame, or Linux, command by command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtfn.api.machine import LabGuestRun
from virtfn.hw.types import Mac, format_mac, parse_mac
from virtfn.machine.clock import S_PS
from virtfn.machine.ports import VirtfnError
from virtfn.pytest.functions import LiveVf

if TYPE_CHECKING:
    from virtfn.api.linux import LinuxGuest
    from virtfn.pytest.lab import LiveLab

__all__ = ["LiveGuest"]

_ETHER_TYPE = 0x88B6  # for local experiments


class LiveGuest:
    """A guest of a lab that is up: embedded, or Linux under QEMU."""

    def __init__(self, lab: LiveLab, run: LabGuestRun | None, linux: LinuxGuest | None) -> None:
        self._lab, self._run, self._linux = lab, run, linux

    @property
    def name(self) -> str:
        """Its name in the lab."""
        return self._embedded.lab.name if self._linux is None else self._linux.lab.name

    @property
    def _embedded(self) -> LabGuestRun:
        if self._run is None:
            raise VirtfnError(f"{self.name} is Linux: ask it by run()", errno_name="EOPNOTSUPP")
        return self._run

    @property
    def driver(self) -> Any:
        """The driver of an embedded guest's interface. Raises VirtfnError (EOPNOTSUPP) for Linux."""
        return self._embedded.driver

    @property
    def mac(self) -> str:
        """The address of its interface."""
        return format_mac(self._mac)

    @property
    def _mac(self) -> Mac:
        return self._embedded.driver.mac if self._linux is None else self._linux.plug.mac

    @property
    def link(self) -> bool:
        """Whether an embedded guest sees a link."""
        return bool(self.driver.link)

    # Embedded guests: frames.

    def frame(
        self,
        to: str | LiveGuest,
        payload: bytes = b"",
        *,
        vlan: int | None = None,
        source: str = "",
        kind: int = _ETHER_TYPE,
    ) -> bytes:
        """Make a frame of this guest's. to: a guest, its name, or an address. source: of the frame, if not its own."""
        target = self._address(to)
        own = parse_mac(source) if source else self._mac
        tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
        ends = int(target).to_bytes(6, "little") + int(own).to_bytes(6, "little")
        return (ends + tag + kind.to_bytes(2, "big") + payload).ljust(60, b"\0")

    def _address(self, to: str | LiveGuest) -> Mac:
        if isinstance(to, str):
            return parse_mac(to) if ":" in to else self._lab.guest(to)._mac
        return to._mac

    def send(
        self,
        to: str | LiveGuest | bytes,
        payload: bytes = b"",
        *,
        count: int = 1,
        vlan: int | None = None,
        source: str = "",
    ) -> None:
        """Send frames, and let the lab go on until they are where they go. to: as for `frame`, or a frame.

        Raises VirtfnError: EMSGSIZE for what is too long, ENETDOWN if the interface is down.
        """
        body = to if isinstance(to, bytes) else self.frame(to, payload, vlan=vlan, source=source)
        left = [body] * count
        while left:
            taken = self.driver.send(left)
            del left[:taken]
            self._lab.settle()
            if left and not taken:
                raise VirtfnError(f"{self.name}'s ring is full, and the card takes nothing", errno_name="ENOBUFS")

    def received(self) -> list[bytes]:
        """Take the frames that have come since the last call, in order."""
        run = self._embedded
        self._lab.settle()
        return self._lab.hands.take(run)

    # Linux guests: commands.

    def run(self, command: str, limit_s: float = 60.0) -> str:
        """Run a shell command in a Linux guest, and return its output.

        Raises VirtfnError: EOPNOTSUPP for an embedded guest, EIO if the command fails, ETIMEDOUT if it goes on.
        """
        if self._linux is None:
            raise VirtfnError(f"{self.name} is embedded, and runs no commands", errno_name="EOPNOTSUPP")
        job = self._linux.start(command)
        if not self._lab.session.run_until(lambda: job.done, int(limit_s * S_PS)) or job.outcome is None:
            raise VirtfnError(f"{command}: no end within {limit_s:g} s", errno_name="ETIMEDOUT")
        if job.outcome.status:
            raise VirtfnError(f"{command}: status {job.outcome.status}: {job.outcome.output}", errno_name="EIO")
        return job.outcome.output

    # Both.

    @property
    def vf(self) -> LiveVf:
        """The VF that it has. Raises VirtfnError (ENODEV) if it has none."""
        vf = self._embedded.vf if self._linux is None else self._linux.plug.vf
        if vf is None:
            raise VirtfnError(f"{self.name} has no VF", errno_name="ENODEV")
        pf = next(pf for pf in self._lab.session.machine.pfs if any(vf is known for known in pf.vfs))
        return LiveVf(self._lab, pf, vf)
