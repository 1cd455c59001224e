"""Kernels of virtio: the device's side of split virtqueues, a bridge, the driver's side."""
