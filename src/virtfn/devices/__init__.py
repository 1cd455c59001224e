"""Models of hardware: what the machine is made of. They meet drivers in registers, memory and interrupts only."""
