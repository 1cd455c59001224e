"""The data plane of the 82576: rings, filters, the switch between pools, offloads, turns."""
