"""Load every kernel of the data plane, compiling what is not on disk yet: by two processes, where there are processors.

this process      the card: serving it, the wire
another           the loops around it, the guests' drivers, streams
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtfn.kernels import _jit

__all__ = ["cached", "load"]


_MARK = "complete"  # a file that says that all of this version's kernels were compiled once
_SOURCES = Path(__file__).resolve().parents[2]


def cached() -> bool:
    """Tell whether every kernel of this version is on disk."""
    return (Path(_jit.CACHE_DIR) / _MARK).exists()


def load() -> bool:
    """Make the kernels ready; return whether anything had to be compiled."""
    before = _jit.compiled_files()
    with _another(not cached()):
        _load_card()
    load_loops()
    (Path(_jit.CACHE_DIR) / _MARK).touch()
    return _jit.compiled_files() > before


@contextmanager
def _another(wanted: bool) -> Iterator[None]:
    """Let another process compile the loops meanwhile. If it fails, they are compiled here."""
    if not wanted or len(os.sched_getaffinity(0)) < 2:
        yield
        return
    command = [sys.executable, "-c", "from virtfn.kernels import warm; warm.load_loops()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_SOURCES), os.environ.get("PYTHONPATH", "")])}
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdin=null, stdout=null, stderr=null) as other:
        try:
            yield
            other.wait()
        finally:
            other.kill()


def _load_card() -> None:
    import numpy as np

    from virtfn.kernels.i82576.doorbells import plug_in
    from virtfn.kernels.i82576.port import wire_in
    from virtfn.kernels.i82576.state import new_nic
    from virtfn.kernels.vtd.iommu import new_iommu

    iommu = new_iommu(0, 0)  # has to live as long as what knows its address
    nic = new_nic(iommu)
    plug_in(nic)
    empty = np.zeros(1, np.int64)
    wire_in(int(nic.ctypes.data), 0, 0, empty, empty, 0, 0)


def load_loops() -> None:
    """Make the loops around a card ready, and what guests and uplinks need."""
    import numpy as np

    from virtfn.kernels.breath import breathe
    from virtfn.kernels.card import CARD
    from virtfn.kernels.i82576.netdev import new_rings
    from virtfn.kernels.i82576.switch import mac_slot
    from virtfn.kernels.pump import PUMP, run_pump
    from virtfn.kernels.ranges import address_of, row_address
    from virtfn.kernels.streams import cut_stream, whole_frames
    from virtfn.kernels.traffic import TRAFFIC, digest, fill_buffers
    from virtfn.kernels.virtio import frontend
    from virtfn.kernels.virtio.bridge import BRIDGE, serve_bridge
    from virtfn.kernels.virtio.loop import run_bridge
    from virtfn.kernels.vtd.iommu import new_iommu
    from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb
    from virtfn.kernels.vtd.irqremap import invalidate_interrupts, remap_interrupt

    card, traffic, state = np.zeros(1, CARD), np.zeros(1, TRAFFIC), np.zeros(1, PUMP)
    empty, scratch = np.zeros(1, np.int64), np.zeros(2, np.int64)
    new_rings()
    frontend.new_rings()
    breathe(row_address(card), row_address(traffic), 0, 0, 0)
    cut_stream(0, 0, 0, 0, empty, empty)
    whole_frames(0, 0)
    plain = ((fill_buffers, 3), (digest, 2), (mac_slot, 1), (serve_bridge, 3), (frontend.quiet, 1), (frontend.rearm, 1))
    for function, arguments in plain:
        _jit.entry(function, arguments)
    bridge = np.zeros(1, BRIDGE)
    bridge["own"]["kicks"], bridge["card"]["serve"] = -1, _jit.entry(serve_bridge, 3)
    run_bridge(row_address(bridge), address_of(scratch), empty[:0], 0, 0)
    unit = new_iommu(0, 0).row
    invalidate_contexts(unit, 0, 0, -1)
    invalidate_iotlb(unit, -1)
    invalidate_interrupts(unit, 0, 16)
    remap_interrupt(unit, 0, 0, 0)
    run_pump(row_address(state), address_of(scratch), empty[:0], np.zeros((0, 2), np.int64), empty[:0], empty[:0], 0, 0)
