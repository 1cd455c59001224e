"""Software that drives the devices: PF, VF and remapping unit. They hold BARs and memory, and know no model."""
