"""VT-d: registers of the remapping unit, tables of DMA and interrupt remapping, its queues.

The modules are read by name, as `tables.ContextEntry` and `regs.Regs.CCMD`: their classes are called what the
specification calls them, and some of those names mean two things.
"""

from virtfn.hw.vtd import interrupts, queue, regs, tables

__all__ = ["interrupts", "queue", "regs", "tables"]
