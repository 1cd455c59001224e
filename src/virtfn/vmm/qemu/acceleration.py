"""KVM or TCG: KVM where a guest kernel really runs under it, QEMU's translator everywhere else.

That /dev/kvm opens proves little: inside some clouds it does, and no stock kernel gets past its first page. So the
kernel that is to boot is booted once without a root: it runs to its panic, and QEMU ends by itself. That takes under a
second where KVM is well; the answer is kept until this machine restarts, or QEMU or the kernel changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu.find import Qemu
from virtfn.vmm.qemu.folder import cache_folder
from virtfn.vmm.qemu.leash import spawn
from virtfn.vmm.qemu.loop import Loop
from virtfn.vmm.qemu.wait import Tick, Watch, rest

__all__ = ["Acceleration", "choose_acceleration", "kvm_obstacle"]

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_API_VERSION = 12
BOOT_S = 10


@dataclass(frozen=True, slots=True)
class Acceleration:
    """How a guest's instructions run. reason: why, in words."""

    kind: Literal["kvm", "tcg"]
    reason: str

    def arguments(self) -> list[str]:
        """Return QEMU's arguments for it."""
        if self.kind == "kvm":
            return ["-accel", "kvm", "-cpu", "host"]
        return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def kvm_obstacle(root: Path = Path("/")) -> str:
    """Say what stands in the way of KVM, as far as can be told without a guest; empty: nothing found.

    root: of the file system with `dev` and `proc`.
    """
    device = root / "dev/kvm"
    try:
        flags = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        flags = ""
    if not device.exists():
        return "no /dev/kvm"
    if not {"vmx", "svm"} & set(flags.split()):
        return "this processor shows neither VT-x nor AMD-V"
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    opened = [descriptor]
    try:
        if fcntl.ioctl(descriptor, KVM_GET_API_VERSION) != KVM_API_VERSION:
            return "/dev/kvm speaks another API version"
        opened.append(fcntl.ioctl(descriptor, KVM_CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[-1], KVM_CREATE_VCPU, 0))
    except OSError as error:
        return f"KVM makes no virtual machine: {error.strerror}"
    finally:
        for each in reversed(opened):
            os.close(each)
    return ""


def choose_acceleration(qemu: Qemu, kernel: Path, *, tick: Tick = rest, root: Path = Path("/")) -> Acceleration:
    """Choose how `qemu` is to run guests that boot `kernel`. root: as for `kvm_obstacle`.

    Takes milliseconds, or once per machine start up to ten seconds, with `tick` called meanwhile.
    """
    if obstacle := kvm_obstacle(root):
        return Acceleration("tcg", obstacle)
    name = f"{_key(qemu, kernel, root)}.json"
    with contextlib.suppress(VirtfnError, OSError, ValueError, KeyError, TypeError):
        known = json.loads((cache_folder() / "kvm" / name).read_text(encoding="utf-8"))
        return Acceleration("kvm" if known["kind"] == "kvm" else "tcg", str(known["reason"]))
    choice = _boot(qemu, kernel, tick)
    with contextlib.suppress(VirtfnError, OSError):  # then it is found out again next time
        kept = cache_folder() / "kvm" / name
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(asdict(choice)), encoding="utf-8")
    return choice


def _key(qemu: Qemu, kernel: Path, root: Path) -> str:
    """Name this start of this machine, this QEMU and this kernel."""
    try:
        boot = (root / "proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot = ""
    stamps = [(str(path), path.stat().st_mtime_ns if path.exists() else 0) for path in (qemu.path, kernel)]
    return hashlib.sha256(repr((boot, qemu.version, stamps)).encode()).hexdigest()[:16]


def _boot(qemu: Qemu, kernel: Path, tick: Tick) -> Acceleration:
    """Boot `kernel` under KVM with nothing to mount, and see whether it comes as far as noticing that."""
    argv = [
        *qemu.command, *Acceleration("kvm", "").arguments(), "-M", "q35", "-m", "256", "-nodefaults", "-vga", "none",
        "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(kernel),
        "-append", "console=ttyS0 panic=-1 root=/dev/none",
    ]  # fmt: skip
    loop = Loop("kvm-probe")  # its thread holds the child's leash
    try:
        with tempfile.TemporaryFile() as said:

            async def start() -> subprocess.Popen[bytes]:
                return spawn(argv, environ=qemu.environ, stderr=said.fileno())

            child = loop.call(start(), "the start of QEMU", timeout_s=BOOT_S, tick=tick, watch=Watch())
            try:
                Watch().until(lambda: child.poll() is not None, "the end", timeout_s=BOOT_S, tick=tick)
            except VirtfnError:
                return Acceleration("tcg", f"a guest kernel hangs under KVM ({BOOT_S} s without an end)")
            finally:
                if child.poll() is None:
                    child.kill()
                child.wait()
            said.seek(0)
            text = said.read().decode("utf-8", "replace")
    finally:
        loop.stop()
    if child.returncode == 0 and "Kernel panic - not syncing: VFS" in text:
        return Acceleration("kvm", "a guest kernel runs under KVM")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), f"status {child.returncode}")
    return Acceleration("tcg", f"a guest kernel does not run under KVM: {last.strip()[:200]}")
