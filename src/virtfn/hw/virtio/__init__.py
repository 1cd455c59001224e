"""Facts of virtio 1.x: split virtqueues and network devices."""
