"""Metrics of a snapshot, as Prometheus reads them.

    node_net_vf_*     as node_exporter's collector of VFs names what it counts; with the same labels
    sriov_vf_*        as the SR-IOV network metrics exporter does, if asked for
    virtfn_*          what only we count: drops by reason, ways of frames, interrupts, exits, the remapping unit

Bytes are without frame check sequences but where it says so. prometheus_client renders (extra `web`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from virtfn.api.session.snapshot import PfCounts, Snapshot, VfCounts

__all__ = ["CONTENT_TYPE", "render_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_AT_RECEIVER = frozenset({"no-descriptor", "queue-disabled", "page-absent"})
_EITHER = frozenset({"oversize", "dma-fault"})
_SPOOFED = ("mac-spoof", "vlan-spoof")


def render_metrics(snapshot: Snapshot, *, sriov: bool = False) -> str:
    """Write a snapshot in Prometheus' text format. sriov: with the names of the SR-IOV network metrics exporter.

    Raises VirtfnError where prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector
    except ImportError:
        raise VirtfnError("metrics need prometheus-client; install virtfn[web]", errno_name="EOPNOTSUPP") from None

    class Collected(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _node(snapshot)
            yield from _own(snapshot)
            if sriov:
                yield from _sriov(snapshot)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    return generate_latest(registry).decode()


def _vfs(snapshot: Snapshot) -> Iterator[tuple[PfCounts, VfCounts]]:
    for pf in snapshot["pfs"]:
        for vf in pf["vfs"]:
            yield pf, vf


def _dropped(vf: VfCounts, *, received: bool) -> int:
    """Count drops that are surely of one side: a reason that may be either's is in virtfn_vf_drops_total alone."""
    known = ((reason in _AT_RECEIVER, count) for reason, count in vf["dropped"].items() if reason not in _EITHER)
    return sum(count for at_receiver, count in known if at_receiver == received)


def _counter(name: str, about: str, labels: list[str], rows: list[tuple[list[str], int]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


_MEASURES: tuple[tuple[str, str, str, Callable[[VfCounts], int]], ...] = (
    ("receive_packets", "rx_packets", "Frames that a VF received.", lambda vf: vf["rx_frames"]),
    ("receive_bytes", "rx_bytes", "Bytes that a VF received.", lambda vf: vf["rx_bytes"]),
    ("transmit_packets", "tx_packets", "Frames that a VF sent.", lambda vf: vf["tx_frames"]),
    ("transmit_bytes", "tx_bytes", "Bytes that a VF sent.", lambda vf: vf["tx_bytes"]),
    ("multicast_packets", "rx_multicast", "Frames to groups that a VF received.",
     lambda vf: vf["ways"]["rx_multicast"]),
    ("broadcast_packets", "rx_broadcast", "Frames to everybody that a VF received.",
     lambda vf: vf["ways"]["rx_broadcast"]),
    ("receive_dropped", "rx_dropped", "Frames for a VF that it could not receive.",
     lambda vf: _dropped(vf, received=True)),
    ("transmit_dropped", "tx_dropped", "Frames of a VF that went nowhere.", lambda vf: _dropped(vf, received=False)),
)  # fmt: skip
"""What both exporters have of a VF: its name at either, what it is, and the number."""


def _node(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ["device", "vf", "pci_address"]
    vfs = [([pf["name"], str(vf["vf"]), vf["address"]], vf) for pf, vf in _vfs(snapshot)]
    for name, _, about, count in _MEASURES:
        yield _counter(f"node_net_vf_{name}", about, labels, [(values, count(vf)) for values, vf in vfs])


def _sriov(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import Metric as Plain

    vfs = [
        ({"numa_node": "0", "pciAddr": vf["address"], "pf": pf["name"], "vf": str(vf["vf"])}, vf)
        for pf, vf in _vfs(snapshot)
    ]
    for _, name, about, count in _MEASURES:
        # Counters there, without the suffix that counters have.
        family = Plain(f"sriov_vf_{name}", about, "unknown")
        for labels, vf in vfs:
            family.add_sample(f"sriov_vf_{name}", labels, count(vf))
        yield family


def _own(snapshot: Snapshot) -> Iterator[Metric]:
    yield from _own_vfs(snapshot)
    guests = [([snapshot["lab"], guest["name"], guest["io"]], guest) for guest in snapshot["guests"]]
    of_guest = ["lab", "guest", "io"]
    yield _counter("virtfn_guest_exits", "Exits of a guest.", of_guest, [(at, guest["exits"]) for at, guest in guests])
    yield _counter(
        "virtfn_guest_interrupts", "Interrupts of a guest.", of_guest, [(at, g["interrupts"]) for at, g in guests]
    )
    pfs = [([snapshot["lab"], pf["name"]], pf["switch"]) for pf in snapshot["pfs"]]
    for name, about, key in (
        ("forwarded", "Frames that a PF's switch gave to one function.", "forwarded"),
        ("flooded", "Frames that a PF's switch gave to several functions.", "flooded"),
    ):
        rows = [(at, int(switch[key])) for at, switch in pfs]  # type: ignore[literal-required]
        yield _counter(f"virtfn_switch_{name}_frames", about, ["lab", "pf"], rows)
    rows = [([*at, reason], count) for at, switch in pfs for reason, count in switch["dropped"].items()]
    yield _counter("virtfn_switch_drops", "Frames dropped at a PF, by reason.", ["lab", "pf", "reason"], rows)
    for name, count in snapshot["iommu"].items():
        words = f"The remapping unit's {name.replace('_', ' ')}."
        yield _counter(f"virtfn_iommu_{name}", words, ["lab"], [([snapshot["lab"]], count)])


def _own_vfs(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    labels = ["lab", "pf", "vf"]
    vfs = [([snapshot["lab"], pf["name"], str(vf["vf"])], vf) for pf, vf in _vfs(snapshot)]
    info = GaugeMetricFamily("virtfn_vf_info", "Who has a VF.", labels=[*labels, "pci_address", "guest"])
    for at, vf in vfs:
        info.add_metric([*at, vf["address"], vf["guest"] or ""], 1)
    yield info
    rows = [([*at, reason], count) for at, vf in vfs for reason, count in vf["dropped"].items()]
    yield _counter("virtfn_vf_drops", "Frames of or for a VF that were dropped, by reason.", [*labels, "reason"], rows)
    rows = [(at, vf["ways"]["dropped_bytes"]) for at, vf in vfs]
    yield _counter("virtfn_vf_dropped_bytes", "Bytes of dropped frames, with check sequences.", labels, rows)
    rows = [(at, sum(vf["dropped"].get(reason, 0) for reason in _SPOOFED)) for at, vf in vfs]
    yield _counter("virtfn_vf_spoofed_frames", "Frames of a VF that the spoof check stopped.", labels, rows)
    rows = [(at, vf["mailbox_messages"]) for at, vf in vfs]
    yield _counter("virtfn_vf_mailbox_messages", "Mailbox messages between a VF and its PF.", labels, rows)
    for side, words in (("tx", "a VF sent to"), ("rx", "a VF received from")):
        for unit in ("frames", "bytes"):
            rows = [([*at, way], vf["ways"][f"{side}_{way}_{unit}"]) for at, vf in vfs for way in ("wire", "hairpin")]
            about = f"{unit.capitalize()} that {words} the wire, and other functions (hairpin)."
            yield _counter(f"virtfn_vf_{side}_way_{unit}", about, [*labels, "way"], rows)
