"""PFs and their VFs, as `ip link show` prints them, space by space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtfn.api.link import LinkDocument, Stats64, VfInfoDocument, VfStats

__all__ = ["chosen", "render_links"]

_DETAILS = ("promiscuity", "min_mtu", "max_mtu", "parentbus", "parentdev")
_COLUMNS = ("bytes", "packets", "errors", "dropped")
_WIDTHS = (10, 7, 6, 7, 7, 7)
_UNUSED = " " * 11  # a column of compressed frames, for links that have such


def chosen(link: LinkDocument, *, details: bool, statistics: bool) -> dict[str, object]:
    """Leave out of a document what `ip -j` does without -d and -s."""
    brief: dict[str, object] = {
        key: value
        for key, value in link.items()
        if (details or key not in _DETAILS) and (statistics or key != "stats64")
    }
    if "vfinfo_list" in link and not statistics:
        brief["vfinfo_list"] = [
            {key: value for key, value in vf.items() if key != "stats"} for vf in link["vfinfo_list"]
        ]
    return brief


def render_links(links: list[LinkDocument], *, details: bool, statistics: bool) -> str:
    """Print PFs."""
    lines = [line for link in links for line in _link(link, details, statistics)]
    return "".join(line + "\n" for line in lines)


def _link(link: LinkDocument, details: bool, statistics: bool) -> Iterator[str]:
    yield (
        f"{link['ifindex']}: {link['ifname']}: <{','.join(link['flags'])}> mtu {link['mtu']} qdisc {link['qdisc']} "
        f"state {link['operstate']} mode {link['linkmode']} group {link['group']}"
    )
    line = f"    link/{link['link_type']} {link['address']} brd {link['broadcast']}"
    if details:
        line += (
            f" promiscuity {link['promiscuity']} minmtu {link['min_mtu']} maxmtu {link['max_mtu']}"
            f" parentbus {link['parentbus']} parentdev {link['parentdev']} "
        )
    yield line
    if statistics:
        yield from _port_stats(link["stats64"])
    for vf in link.get("vfinfo_list", []):
        yield _vf(vf)
        if statistics:
            yield from _vf_stats(vf["stats"])


def _port_stats(stats: Stats64) -> Iterator[str]:
    rx, tx = stats["rx"], stats["tx"]
    received = _numbers(rx, "bytes packets errors dropped - multicast")
    sent = _numbers(tx, "bytes packets errors dropped carrier_errors collisions")
    widths = [max(w, len(str(a)), len(str(b))) for w, a, b in zip(_WIDTHS, received, sent, strict=True)]
    for way, names, counts in (
        ("RX:", (*_COLUMNS, "missed", "mcast"), received),
        ("TX:", (*_COLUMNS, "carrier", "collsns"), sent),
    ):
        first, *others = (name.rjust(width) for name, width in zip(names, widths, strict=True))
        yield "    " + " ".join([way + first[len(way) :], *others]) + _UNUSED
        yield "    " + "".join(f"{count:>{width}} " for count, width in zip(counts, widths, strict=True))


def _numbers(counts: Mapping[str, object], names: str) -> list[int]:
    """Pick counts by name; what nothing here counts is 0."""
    return [int(str(counts.get(name, 0))) for name in names.split()]


def _vf(vf: VfInfoDocument) -> str:
    parts = [f"    vf {vf['vf']}     link/{vf['link_type']} {vf['address']} brd {vf['broadcast']}"]
    for vlan in vf["vlan_list"]:
        parts += [f"vlan {vlan['vlan']}"] if "vlan" in vlan else []
        parts += [f"qos {vlan['qos']}"] if "qos" in vlan else []
    if "tx_rate" in vf:
        parts.append(f"tx rate {vf['tx_rate']} (Mbps)")
    parts += [f"{name} {rate}Mbps" for name, rate in _rates(vf) if rate]
    on = {True: "on", False: "off"}
    parts.append(f"spoof checking {on[vf['spoofchk']]}")
    parts += [f"link-state {vf['link_state']}"] if "link_state" in vf else []
    parts += [f"trust {on[vf['trust']]}"] if "trust" in vf else []
    parts.append(f"query_rss {on[vf['query_rss_en']]}")
    return ", ".join(parts)


def _rates(vf: VfInfoDocument) -> tuple[tuple[str, int], ...]:
    return ("max_tx_rate", vf["rate"]["max_tx"]), ("min_tx_rate", vf["rate"]["min_tx"])


def _vf_stats(stats: VfStats) -> Iterator[str]:
    rx, tx = stats["rx"], stats["tx"]
    yield "    RX: bytes  packets  mcast   bcast   dropped "
    yield (f"    {rx['bytes']:>10} {rx['packets']:>8} {rx['multicast']:>7} {rx['broadcast']:>7} {rx['dropped']:>8} ")
    yield "    TX: bytes  packets   dropped "
    yield f"    {tx['tx_bytes']:>10} {tx['tx_packets']:>8} {tx['dropped']:>8} "
