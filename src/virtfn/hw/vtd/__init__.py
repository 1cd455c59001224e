"""VT-d: the tables of DMA remapping, and the remapping unit's registers."""
