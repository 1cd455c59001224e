"""The board before a card is plugged in: memory, configuration space, root complex, interrupts, time."""
