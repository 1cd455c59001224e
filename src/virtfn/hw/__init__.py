"""Facts of the hardware: registers, descriptors, table entries, messages. No state, no input or output."""
