"""What guests do with their I/O, and the engine that lets them."""
