"""Two guests' drivers and their work, with a cable of Python in place of a NIC: frames may be lost or altered."""

from __future__ import annotations

import numpy as np

from unit.nicrig import mac
from virtfn.hw.types import Mac
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels._jit import kernel
from virtfn.kernels.i82576.netdev import new_rings
from virtfn.kernels.netdev import BATCH, call_netdev, netdev_at
from virtfn.kernels.ranges import address_of
from virtfn.kernels.traffic import check_generated, check_value, filler_sum, poll_guest, put_tag_back, traffic_at

BUFFER = 2048


@kernel
def poll(traffic: int, g: int, netdev: int, budget: int) -> tuple[int, int]:
    return poll_guest(traffic_at(traffic), g, netdev_at(netdev), budget)


@kernel
def check_frame(traffic: int, g: int, frame: int, length: int) -> None:
    check_generated(traffic_at(traffic), g, frame, length, 0)


@kernel
def frame_check_value(frame: int, length: int) -> int:
    return check_value(frame, length, filler_sum(frame + 32, length - 32))


@kernel
def room(netdev: int) -> int:
    return call_netdev(netdev_at(netdev).tx_room, netdev, 0)


@kernel
def push(netdev: int, count: int) -> None:
    call_netdev(netdev_at(netdev).tx_send, netdev, count)


@kernel
def take(netdev: int, most: int) -> int:
    return call_netdev(netdev_at(netdev).rx_take, netdev, most)


@kernel
def give_back(netdev: int, count: int) -> None:
    call_netdev(netdev_at(netdev).rx_return, netdev, count)


@kernel
def retag(netdev: int, frame: int, length: int, tag: int) -> int:
    return put_tag_back(netdev_at(netdev), frame, length, tag)


class Driver:
    """A driver's row, rings and buffers in plain memory; here the device is played by `sent` and `deliver`."""

    def __init__(self, ring: int) -> None:
        self.block = new_rings()
        self.row = self.block[0]
        self.address = int(self.block.ctypes.data)
        self.lengths = np.zeros(ring, np.int64)
        self.taken = np.zeros((BATCH, 3), np.int64)
        self.tx = np.zeros((ring, 2), np.uint64)
        self.rx = np.zeros((ring, 2), np.uint64)
        self.tx_buffers = np.zeros((ring, BUFFER), np.uint8)
        self.rx_buffers = np.zeros((ring, BUFFER), np.uint8)
        self.bounce = np.zeros(BUFFER + 4, np.uint8)
        self.vlans = np.zeros(512, np.uint8)
        self.words = np.zeros(4, np.uint32)  # tx tail, rx tail, head written back
        base = address_of(self.words)
        for name, value in {
            "tx_tail_register": base, "rx_tail_register": base + 4, "tx_done_head": base + 8,
            "tx_ring": address_of(self.tx), "rx_ring": address_of(self.rx), "tx_size": ring, "rx_size": ring,
            "tx_iova": 0x10000, "rx_iova": 0x800000, "buffer_bytes": BUFFER, "bounce": address_of(self.bounce),
            "vlans": address_of(self.vlans),
            "tx_buffers": address_of(self.tx_buffers), "rx_buffers": address_of(self.rx_buffers),
            "tx_lengths": address_of(self.lengths), "taken": address_of(self.taken), "up": 1, "polling": 1,
        }.items():  # fmt: skip
            self.row[name] = value
        self.rx_head = 0

    def sent(self) -> list[bytes]:
        """Finish what the driver has shown by its tail."""
        out = []
        while self.words[2] != self.words[0]:
            i = int(self.words[2])
            size = int(self.tx[i, 1]) & 0xFFFF
            assert int(self.tx[i, 0]) == 0x10000 + i * BUFFER
            assert int(self.tx[i, 1]) >> 46 == size
            out.append(self.tx_buffers[i, :size].tobytes())
            self.words[2] = (i + 1) % len(self.tx)
        return out

    def deliver(self, frame: bytes, status: int = 3, vlan: int = 0, length: int | None = None) -> None:
        """Write a frame into the next receive descriptor."""
        i = self.rx_head
        self.rx_buffers[i, : len(frame)] = np.frombuffer(frame[:BUFFER], np.uint8)
        self.rx[i] = 0, status | (len(frame) if length is None else length) << 32 | vlan << 48
        self.rx_head = (i + 1) % len(self.rx)


class Pair:
    """Two guests; with `fan-in`, guest 1 sends `frames` frames to guest 0."""

    def __init__(self, length: int = 200, frames: int = 100, ring: int = 32, kind: str = "fan-in") -> None:
        self.drivers = [Driver(ring), Driver(ring)]
        stations = [Station(d.block, Mac(mac(n))) for n, d in enumerate(self.drivers)]
        self.workload = Workload(kind, stations, length=length, frames=frames)
        self.address = int(self.workload.block.ctypes.data)

    def poll(self, g: int, budget: int = 64) -> tuple[int, int]:
        return poll(self.address, g, self.drivers[g].address, budget)

    def task(self, g: int, name: str) -> int:
        return int(self.workload.row["tasks"][g][name])
