"""Make kernels ready before they are needed, compiling what is not on disk: by two processes, on two cores.

    card      serving it, and what Python does to it
    loops     the loop around all, guests of this process, and what of a card is for frames out of the ordinary
    rest      what most labs do without: virtual machines, uplinks, captures replayed, pages that are not there

A kernel that is in none of them is compiled when Python calls it for the first time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from virtfn import private
from virtfn.kernels import _jit, _objects

__all__ = ["KERNELS", "cached", "count", "load", "phase", "told"]


_LOOK_S = 0.2

KERNELS = {False: 20, True: 65}
"""How many files these kernels are, without `rest` and with it."""


def cached(*, rest: bool = True) -> bool:
    """Tell whether these kernels are on disk."""
    return _objects.shipped() or (_objects.cache() / _mark(rest)).exists()


def phase(*, rest: bool = True) -> str:
    """Name what `load` is about to do, for people."""
    if cached(rest=rest):
        return "starting"
    why = _objects.why_not_shipped()
    return "compiling kernels (first run only)" + (f": {why}" if why else "")


@contextmanager
def told(tell: Callable[[], None]) -> Iterator[None]:
    """Let somebody be told whenever a kernel has to be compiled, as long as the context is open."""
    _jit.listeners.append(tell)
    try:
        yield
    finally:
        _jit.listeners.remove(tell)


def load(*, rest: bool = True, watch: Callable[[int, int], None] | None = None) -> bool:
    """Make the kernels ready; return whether anything had to be compiled.

    watch: is told meanwhile how many files there are, and how many there will be; by another thread.
    """
    complete = cached(rest=rest)
    with _watched(watch if not complete else None, KERNELS[rest]):
        with _another(not complete, rest):
            load_card()
        load_loops()
        if rest:
            load_rest()
    if not complete:
        (_objects.cache() / _mark(rest)).touch()
    return not complete


@contextmanager
def _watched(watch: Callable[[int, int], None] | None, total: int) -> Iterator[None]:
    if watch is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            watch(min(count(), total), total)

    watcher = threading.Thread(target=look, name="watch-compiler", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def count() -> int:
    """Count the files of kernels that were compiled on this machine."""
    return sum(1 for _ in _objects.cache().glob("*.o"))


def _mark(rest: bool) -> str:
    """Name the file that says that all of these kernels were compiled once."""
    return "complete" if rest else "complete-for-most"


@contextmanager
def _another(wanted: bool, rest: bool) -> Iterator[None]:
    """Let another process compile the loops meanwhile. If it fails, they are compiled here."""
    if not wanted or len(os.sched_getaffinity(0)) < 2:
        yield
        return
    work = "warm.load_loops(); warm.load_rest()" if rest else "warm.load_loops()"
    command = [sys.executable, "-P", "-c", f"from virtfn.kernels import warm; {work}"]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=private.environment(), stdin=null, stdout=null, stderr=null) as other:
        try:
            yield
            other.wait()
        finally:
            other.kill()


def load_card() -> None:
    """Make a card ready, and its IOMMU."""
    from virtfn.kernels.i82576.doorbells import plug_in
    from virtfn.kernels.i82576.state import new_nic
    from virtfn.kernels.i82576.switch import mac_slot
    from virtfn.kernels.vtd.iommu import new_iommu
    from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb
    from virtfn.kernels.vtd.irqremap import invalidate_interrupts

    iommu = new_iommu(0, 0)  # has to live as long as what knows its address
    plug_in(new_nic(iommu))
    _jit.entry(mac_slot, 1)
    invalidate_contexts(iommu.row, 0, 0, -1)
    invalidate_iotlb(iommu.row, -1)
    invalidate_interrupts(iommu.row, 0, 16)


def load_loops() -> None:
    """Make the loop around a card ready, guests of this process, and interrupts."""
    import numpy as np

    from virtfn.kernels.breath import breathe
    from virtfn.kernels.card import CARD
    from virtfn.kernels.i82576.forward import spread
    from virtfn.kernels.i82576.netdev import new_rings
    from virtfn.kernels.i82576.storm import is_storm
    from virtfn.kernels.i82576.tx import serve_one
    from virtfn.kernels.ranges import row_address
    from virtfn.kernels.traffic import TRAFFIC, fill_buffers
    from virtfn.kernels.vtd.irqremap import remap_interrupt

    card, traffic = np.zeros(1, CARD), np.zeros(1, TRAFFIC)
    new_rings()
    breathe(row_address(card), row_address(traffic), 0, 0, 0)
    _jit.entry(fill_buffers, 3)
    _jit.ready(remap_interrupt, serve_one, spread, is_storm)


def load_rest() -> None:
    """Make ready what most labs do without."""
    import numpy as np

    from virtfn.kernels.copylimit import copy_buffers
    from virtfn.kernels.i82576.cable import carry
    from virtfn.kernels.i82576.classify import classify
    from virtfn.kernels.i82576.farend import new_far_end
    from virtfn.kernels.i82576.forward import send_wire
    from virtfn.kernels.i82576.offload import gather
    from virtfn.kernels.i82576.port import wire_in
    from virtfn.kernels.i82576.rx import receive_scattered
    from virtfn.kernels.i82576.seen import capture_frame, tap_frame, tap_missed, taps_take
    from virtfn.kernels.i82576.state import new_nic
    from virtfn.kernels.i82576.switch import mirror_pools
    from virtfn.kernels.i82576.taplocal import tap_left_unseen, tap_local, tap_unseen
    from virtfn.kernels.i82576.tx import send_segments
    from virtfn.kernels.pump import PUMP, answer_at_once, run_pump
    from virtfn.kernels.ranges import address_of, row_address
    from virtfn.kernels.streams import cut_stream, whole_frames
    from virtfn.kernels.traffic import digest, handle_ping, log_frame, send_arp, send_echo, send_replayed
    from virtfn.kernels.virtio import frontend
    from virtfn.kernels.virtio.bridge import BRIDGE, serve_bridge
    from virtfn.kernels.virtio.loop import run_bridge
    from virtfn.kernels.vtd.ats import forget_pages, new_device_tlb, translate_by_device
    from virtfn.kernels.vtd.dma import dma_copy_in, dma_copy_out
    from virtfn.kernels.vtd.iommu import new_iommu, record_fault, record_message
    from virtfn.kernels.vtd.iotlb import invalidate_iotlb_pages

    _jit.ready(classify, gather, receive_scattered, send_segments, send_wire, capture_frame, mirror_pools)
    _jit.ready(tap_frame, tap_left_unseen, tap_local, tap_missed, tap_unseen, taps_take)
    _jit.ready(record_fault, record_message, translate_by_device)
    _jit.ready(handle_ping, log_frame, send_arp, send_echo, send_replayed)
    state, empty, scratch = np.zeros(1, PUMP), np.zeros(1, np.int64), np.zeros(2, np.int64)
    iommu = new_iommu(0, 0)
    nic = new_nic(iommu)
    wire_in(int(nic.ctypes.data), 0, 0, empty, empty, 0, 0)
    cut_stream(0, 0, 0, 0, empty, empty)
    whole_frames(0, 0)
    frontend.new_rings()
    new_far_end(int(nic.ctypes.data), 2, [])
    plain = ((carry, 3), (digest, 2), (copy_buffers, 6), (serve_bridge, 3), (frontend.quiet, 1), (frontend.rearm, 1))
    for function, arguments in plain:
        _jit.entry(function, arguments)
    bridge = np.zeros(1, BRIDGE)
    bridge["own"]["kicks"], bridge["card"]["serve"] = -1, _jit.entry(serve_bridge, 3)
    run_bridge(row_address(bridge), address_of(scratch), empty[:0], 0, 0)
    invalidate_iotlb_pages(iommu.row, 0, 0, 0)
    forget_pages(new_device_tlb(1)[0], 0, 0, -1)
    dma_copy_in(iommu.row, 0, 0, 0, 0)
    dma_copy_out(iommu.row, 0, 0, 0, 0)
    none, links = empty[:0], np.zeros((0, 2), np.int64)
    run_pump(row_address(state), address_of(scratch), none, none, links, none, 0, none, 0, 0)
    answer_at_once(none, links, none, 0, 0, scratch.ctypes.data)
