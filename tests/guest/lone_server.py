"""A program that serves one guest for ever, to be killed: prints "serving PID FOLDER" once the guest is up."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from guest.rig import LinuxRig
from virtfn.vmm.qemu import find_qemu
from virtfn.vmm.qemu.image import Image


def main() -> None:
    kernel, initrd, logs = map(Path, sys.argv[1:])
    with LinuxRig(find_qemu(), Image(kernel, initrd, "", ()), logs, guests=1) as rig:
        guest = rig.vms[0].guest
        print("serving", guest.pid, guest.folder, flush=True)
        while True:
            rig.pump()


if __name__ == "__main__":
    main()
