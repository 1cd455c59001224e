"""The data plane: compiled functions over raw memory, and the tables that they run on."""

from virtfn.kernels.stray import CHECKED

if CHECKED:
    from virtfn.kernels import ranges as ranges  # what its kernels ask has to be there before any of them
