"""The data plane: compiled functions over raw memory, and the tables that they run on."""
