"""The Intel 82576 gigabit controller: one PF, up to eight VFs, one port."""

from virtfn.devices.nic82576.config import Card
from virtfn.devices.nic82576.nic import Nic82576

__all__ = ["Card", "Nic82576"]
