"""VT-d: the tables of DMA remapping, and the remapping unit's registers.

`tables` and `regs` are read by name, as `tables.ContextEntry` and `regs.Regs.CCMD`: their classes are called what the
specification calls them, and some of those names mean two things.
"""

from virtfn.hw.vtd import regs, tables

__all__ = ["regs", "tables"]
