"""Two Linux guests with stock virtio_net, at sockets of one switch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guest.rig import address
from virtfn.hw.types import Mac, format_mac
from virtfn.vmm.qemu import Machine, Outcome, Qemu, QemuGuest, Watch, choose_acceleration
from virtfn.vmm.qemu.image import Image
from virtfn.vmm.vhost_user import Server, Switch


def guest_mac(n: int) -> Mac:
    return Mac(0x02 | (0x20 + n) << 40)


class SwitchRig:
    """The rig, as a context manager. logs: a folder for what consoles say. options: of each guest's device."""

    def __init__(self, qemu: Qemu, image: Image, logs: Path, *, options: Sequence[str] = ("", "")) -> None:
        self._qemu, self._image, self._logs, self._options = qemu, image, logs, options
        self._acceleration = choose_acceleration(qemu, image.kernel)
        self.switch = Switch()
        self.servers: list[Server] = []
        self.guests: list[QemuGuest] = []

    def __enter__(self) -> SwitchRig:
        try:
            for n, options in enumerate(self._options):
                self.servers.append(self.switch.listen(self._logs / f"{n}.sock"))
                self.guests.append(self._guest(n, options))
                self.guests[-1].start(tick=self.switch)
            for guest in self.guests:
                guest.agent.wait_ready(tick=self.switch)
        except BaseException:
            self.close()
            raise
        return self

    def _guest(self, n: int, options: str) -> QemuGuest:
        extra = (
            "-chardev", f"socket,id=c0,path={self.servers[n].path},reconnect-ms=200",
            "-netdev", "vhost-user,id=n0,chardev=c0",
            "-device", "virtio-net-pci,netdev=n0,id=net0,bus=pcie.0,addr=2,disable-legacy=on,romfile=,"
            f"mac={format_mac(guest_mac(n))}{options}",
        )  # fmt: skip
        machine = Machine(
            f"v{n}", self._image.kernel, self._image.initrd, append=f"virtfn.name=v{n} quiet", memory_mib=256,
            reboot=True, extra=extra,
        )  # fmt: skip
        return QemuGuest(machine, self._qemu, self._acceleration, log=self._logs / f"v{n}.log")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for guest in self.guests:
            guest.close(tick=self.switch)
        self.switch.close()

    def attempt(self, n: int, command: str, *, timeout_s: float = 60.0) -> Outcome:
        agent = self.guests[n].agent
        return agent.wait(agent.start(command), timeout_s=timeout_s, tick=self.switch)

    def run(self, n: int, command: str, *, timeout_s: float = 60.0) -> str:
        done = self.attempt(n, command, timeout_s=timeout_s)
        assert done.status == 0, f"v{n}: {command}: status {done.status}: {done.output}"
        return done.output

    def until(self, done: Any, what: str, *, timeout_s: float = 30.0) -> None:
        Watch().until(done, what, timeout_s=timeout_s, tick=self.switch)

    def up(self, n: int) -> None:
        self.run(n, f"ip link set eth0 up && ip addr replace {address(n)}/24 dev eth0")
        self.until(lambda: self.carrier(n), f"a link at v{n}")

    def carrier(self, n: int) -> bool:
        return self.attempt(n, "cat /sys/class/net/eth0/carrier").output.strip() == "1"

    def ping(self, n: int, peer: int, options: str = "-c 10 -i 0.05") -> str:
        said = self.attempt(n, f"ping {options} {address(peer)}").output
        assert " 0% packet loss" in said, said
        return said

    def iperf(self, n: int, peer: int, options: str = "", seconds: float = 2.0) -> Any:
        server = self.guests[peer].agent.start("iperf3 -s -1 -J")
        self.run(peer, "for i in $(seq 50); do ss -ltn | grep -q :5201 && exit 0; sleep 0.1; done; exit 1")
        said = self.attempt(n, f"iperf3 -J -t {seconds:g} -c {address(peer)} {options}", timeout_s=seconds + 40)
        report = json.loads(said.output)
        assert "error" not in report, report["error"]
        self.guests[peer].agent.wait(server, timeout_s=30, tick=self.switch)
        return report
