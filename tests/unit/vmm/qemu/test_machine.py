import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Acceleration, Function, Machine, Qemu, VirtioNic
from virtfn.vmm.qemu.machine import Disk

QEMU = Qemu(Path("/q"), ("/q",), (11, 1, 0))


def argv(machine: Machine, kind: str = "tcg") -> list[str]:
    return machine.argv(QEMU, Acceleration(kind, ""), qmp=5, console=6, agent=7)  # type: ignore[arg-type]


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def test_memory_can_be_shared_and_nothing_comes_by_default(kernel: Path) -> None:
    arguments = argv(Machine("a", kernel, append="quiet", memory_mib=256))
    assert "-nodefaults" in arguments
    assert values(arguments, "-m") == ["256M"]
    assert values(arguments, "-object") == ["memory-backend-memfd,id=ram,size=256M,share=on"]
    private = argv(Machine("a", kernel, memory_mib=256, shared=False))
    assert values(private, "-object") == ["memory-backend-ram,id=ram,size=256M"]
    assert values(arguments, "-append") == ["console=ttyS0 panic=-1 no_timer_check quiet"]
    assert values(arguments, "-serial") == ["chardev:console", "chardev:agent"]
    assert "-no-reboot" in arguments
    assert "-initrd" not in arguments
    assert "-no-reboot" not in argv(Machine("a", kernel, reboot=True))
    assert values(argv(Machine("a", kernel), "kvm"), "-cpu") == ["host"]


def test_an_iommu_is_there_before_what_it_translates(kernel: Path) -> None:
    arguments = argv(Machine("a", kernel, iommu=True, functions=(Function("n0", Path("/s")),)))
    assert values(arguments, "-device")[0] == "intel-iommu,caching-mode=on"
    assert values(arguments, "-M")[0].endswith("kernel-irqchip=split")
    assert not any("intel-iommu" in word for word in argv(Machine("a", kernel)))


def test_functions_sit_behind_root_ports(kernel: Path) -> None:
    functions = (Function("n0", Path("/s,0")), Function("n1", Path("/s1"), {"bootindex": 1}))
    devices = values(
        argv(Machine("a", kernel, slots=3, functions=functions, extra=("-device", "igb,addr=2"))), "-device"
    )
    assert [d.split(",")[1] for d in devices[:3]] == ["id=rp0", "id=rp1", "id=rp2"]
    assert json.loads(devices[3]) == {
        "driver": "vfio-user-pci", "id": "n0", "bus": "rp0", "socket": {"type": "unix", "path": "/s,0"},
        "x-msg-timeout": 600000,
    }  # fmt: skip
    assert json.loads(devices[4])["bootindex"] == 1
    assert devices[5] == "igb,addr=2"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"name": "../x"}, "guest name '../x'"),
        ({"name": "a,b"}, "guest name"),
        ({"name": ""}, "guest name"),
        ({"name": "x" * 33}, "guest name"),
        ({"kernel": Path("/no/kernel")}, "no file /no/kernel"),
        ({"initrd": Path("/no/initrd")}, "no file /no/initrd"),
        ({"memory_mib": 63}, "memory-mib 63 is not in 64"),
        ({"memory_mib": -1}, "memory-mib -1"),
        ({"cpus": 0}, "cpus 0 is not in 1..255"),
        ({"slots": 15}, "slots 15 is not in 0..14"),
        ({"slots": 0, "functions": (Function("n0", Path("/s")),)}, "slots 0 is not in 1..14"),
        ({"functions": (Function("n0", Path("/s")), Function("n0", Path("/t")))}, "two functions of one name"),
    ],
)
def test_what_cannot_work_is_refused(kernel: Path, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(VirtfnError, match=complaint):
        Machine(**{"name": "a", "kernel": kernel, **settings})


@pytest.mark.parametrize("name", ["", "0n", "a b", "rp0", "ram", "a,b", "x" * 33])
def test_device_names(name: str) -> None:
    with pytest.raises(VirtfnError, match="is not a name for a device"):
        Function(name, Path("/s"))


def test_a_disk_and_another_firmware(kernel: Path, tmp_path: Path) -> None:
    disk = tmp_path / "a,b.qcow2"
    disk.touch()
    machine = Machine("a", disk=Disk(disk, "qcow2"), firmware=kernel)
    arguments = argv(machine)
    assert "-kernel" not in arguments
    assert "-append" not in arguments
    assert values(arguments, "-bios") == [str(kernel)]
    written = str(disk).replace(",", ",,")
    assert values(arguments, "-drive") == [f"if=none,id=disk,file={written},format=qcow2,snapshot=on"]
    assert "virtio-blk-pci,drive=disk,bus=pcie.0,addr=0xf,bootindex=0" in values(arguments, "-device")
    kept = argv(Machine("a", kernel, disk=Disk(disk, "raw", snapshot=False, boot=False)))
    assert values(kept, "-drive")[0].endswith("format=raw,snapshot=off")
    assert "virtio-blk-pci,drive=disk,bus=pcie.0,addr=0xf" in values(kept, "-device")
    with pytest.raises(VirtfnError, match="no kernel to boot"):
        Machine("a")


def test_a_command_for_somebody_else(kernel: Path) -> None:
    qemu = Qemu(Path("/q"), ("/loader", "/q"), (11, 1, 0), {"QEMU_MODULE_DIR": "/m"})
    nic = VirtioNic("vif", Path("/s,1"), "02:00:00:00:00:01")
    machine = Machine("a", kernel, slots=2, functions=(Function("n0", Path("/s0")),), extra=("-usb",))
    command = machine.command(qemu, Acceleration("tcg", ""), [nic])
    assert command[:4] == ["env", "QEMU_MODULE_DIR=/m", "/loader", "/q"]
    assert not [word for word in command if "fd=" in word]
    assert values(command, "-serial") == ["mon:stdio"]
    assert values(command, "-chardev") == ["socket,id=vif-channel,path=/s,,1,reconnect-ms=500"]
    assert values(command, "-netdev") == ["vhost-user,id=vif-net,chardev=vif-channel"]
    assert [json.loads(d)["bus"] for d in values(command, "-device") if d.startswith("{")] == ["rp0", "rp1"]
    assert command[-1] == "-usb"
