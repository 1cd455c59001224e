"""Guests that are real virtual machines: QEMU, the image they boot, and where both come from."""
