"""Load every kernel of the data plane, compiling what is not on disk yet."""

from __future__ import annotations

from pathlib import Path

from virtfn.kernels import _jit

__all__ = ["cached", "load"]


_MARK = "complete"  # a file that says that all of this version's kernels were compiled once


def cached() -> bool:
    """Tell whether every kernel of this version is on disk."""
    return (Path(_jit.CACHE_DIR) / _MARK).exists()


def load() -> bool:
    """Make the kernels ready; return whether anything had to be compiled."""
    before = _jit.compiled_files()
    import numpy as np

    from virtfn.kernels.breath import breathe
    from virtfn.kernels.i82576.doorbells import plug_in
    from virtfn.kernels.i82576.netdev import new_rings
    from virtfn.kernels.i82576.port import fire_vectors, serve_port, wire_in
    from virtfn.kernels.i82576.state import new_nic
    from virtfn.kernels.pump import PUMP, run_pump
    from virtfn.kernels.ranges import address_of, row_address
    from virtfn.kernels.streams import cut_stream, whole_frames
    from virtfn.kernels.traffic import TRAFFIC
    from virtfn.kernels.vtd.iommu import new_iommu

    iommu = new_iommu(0, 0)  # has to live as long as what knows its address
    nic = new_nic(iommu)
    plug_in(nic)
    new_rings()
    traffic = np.zeros(1, TRAFFIC)
    address = int(nic.ctypes.data)
    breathe(address, row_address(traffic), 0, 0, 0)
    fire_vectors(address, 0)
    serve_port(address, 0, 0)
    empty = np.zeros(1, np.int64)
    wire_in(address, 0, 0, empty, empty, 0, 0)
    cut_stream(0, 0, 0, 0, empty, empty)
    whole_frames(0, 0)
    state = np.zeros(1, PUMP)
    scratch = np.zeros(2, np.int64)
    run_pump(row_address(state), address_of(scratch), empty[:0], np.zeros((0, 2), np.int64), empty[:0], empty[:0], 0, 0)
    (Path(_jit.CACHE_DIR) / _MARK).touch()
    return _jit.compiled_files() > before
