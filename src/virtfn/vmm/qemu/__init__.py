"""Guests that are real virtual machines: QEMU, the image they boot, and where both come from.

find_qemu, install_qemu: a QEMU with vfio-user (find, debian). choose_acceleration: KVM or TCG, and why (acceleration).
Machine, Function, VirtioNic: what a guest is made of (machine). QemuGuest: its start, QMP, hot-plug and end (launch,
monitor, leash, loop); its two serial ports are `console` (console, shell) and `agent` (agent, agent.sh).
"""

from virtfn.vmm.qemu.acceleration import Acceleration, choose_acceleration, kvm_obstacle
from virtfn.vmm.qemu.agent import Agent, Job, Outcome, agent_script
from virtfn.vmm.qemu.console import Console
from virtfn.vmm.qemu.find import Qemu, find_ovmf, find_qemu, install_qemu
from virtfn.vmm.qemu.folder import cache_folder, console_doors
from virtfn.vmm.qemu.launch import QemuGuest
from virtfn.vmm.qemu.machine import Function, Machine, VirtioNic
from virtfn.vmm.qemu.shell import attach
from virtfn.vmm.qemu.wait import Tick, Watch, rest

__all__ = [
    "Acceleration",
    "Agent",
    "Console",
    "Function",
    "Job",
    "Machine",
    "Outcome",
    "Qemu",
    "QemuGuest",
    "Tick",
    "VirtioNic",
    "Watch",
    "agent_script",
    "attach",
    "cache_folder",
    "choose_acceleration",
    "console_doors",
    "find_ovmf",
    "find_qemu",
    "install_qemu",
    "kvm_obstacle",
    "rest",
]
