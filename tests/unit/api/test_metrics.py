"""Metrics: names that exporters of VFs use, what promtool says, a Prometheus that scrapes, a dashboard that fits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="not run: the extra `web` is not installed")

from prometheus_client.parser import text_string_to_metric_families

from unit.rig import lab_text
from virtfn.api.lab import parse_lab
from virtfn.api.metrics import render_metrics
from virtfn.api.session import Session, Snapshot

FRAMES = 300
DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "virtfn.json"


@pytest.fixture(scope="module")
def snapshot() -> Iterator[Snapshot]:
    with Session(parse_lab(lab_text(workload=f"{{kind: pairs, frames: {FRAMES}}}"))) as session:
        session.start()
        session.work()
        yield session.snapshot()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_and_labels_of_node_exporter(snapshot: Snapshot) -> None:
    had = samples(render_metrics(snapshot))
    vf = snapshot["pfs"][0]["vfs"][0]
    labels = (("device", "pf0"), ("pci_address", vf["address"]), ("vf", "0"))
    assert had["node_net_vf_transmit_packets_total", labels] == vf["tx_frames"] >= FRAMES
    assert had["node_net_vf_receive_bytes_total", labels] == vf["rx_bytes"]
    names = {name for name, _ in had if name.startswith("node_net_vf_")}
    ways = ("receive_packets", "receive_bytes", "transmit_packets", "transmit_bytes", "multicast_packets",
            "broadcast_packets", "receive_dropped", "transmit_dropped")  # fmt: skip
    assert names == {f"node_net_vf_{way}_total" for way in ways}
    assert not any(name.startswith("sriov_vf_") for name, _ in had)


def test_names_of_the_sriov_exporter_when_asked_for(snapshot: Snapshot) -> None:
    had = samples(render_metrics(snapshot, sriov=True))
    vf = snapshot["pfs"][0]["vfs"][1]
    labels = (("numa_node", "0"), ("pciAddr", vf["address"]), ("pf", "pf0"), ("vf", "1"))
    assert had["sriov_vf_rx_packets", labels] == vf["rx_frames"]


def test_ways_are_kept_apart(snapshot: Snapshot) -> None:
    had = samples(render_metrics(snapshot))
    vf = snapshot["pfs"][0]["vfs"][0]
    hairpin = (("lab", snapshot["lab"]), ("pf", "pf0"), ("vf", "0"), ("way", "hairpin"))
    wire = (*hairpin[:3], ("way", "wire"))
    assert had["virtfn_vf_tx_way_frames_total", hairpin] >= FRAMES
    assert had["virtfn_vf_rx_way_frames_total", hairpin] + had["virtfn_vf_rx_way_frames_total", wire] == vf["rx_frames"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="not run: no promtool (Debian package prometheus)")
def test_promtool_finds_nothing_wrong(snapshot: Snapshot) -> None:
    judged = subprocess.run(
        ["promtool", "check", "metrics"], input=render_metrics(snapshot), capture_output=True, text=True, timeout=60
    )
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")


def test_every_query_of_the_dashboard_names_a_metric_that_there_is(snapshot: Snapshot) -> None:
    there = {name for name, _ in samples(render_metrics(snapshot))} | {
        "virtfn_vf_drops_total",
        "virtfn_switch_drops_total",
    }
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = [re.findall(r"\b(?:virtfn|node|sriov)_[a-z_]+", query) for query in queries]
    assert len(queries) >= 8
    assert all(names and set(names) <= there for names in named), named


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="not run: no prometheus (Debian package prometheus)")
def test_prometheus_scrapes_it(snapshot: Snapshot, tmp_path: Path) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="not run: the extra `web` is not installed")
    from virtfn.web.app import make_app
    from virtfn.web.serve import listen

    listener, other = listen(0), listen(0)
    port, own = listener.getsockname()[1], other.getsockname()[1]
    other.close()
    server = uvicorn.Server(
        uvicorn.Config(make_app(lambda method, params: snapshot, "secret", port), log_level="error")
    )
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    (tmp_path / "token").write_text("secret")
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: virtfn\n"
        f"    authorization: {{credentials_file: {tmp_path}/token}}\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    )
    prometheus = subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{own}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        query = urllib.parse.urlencode({"query": 'node_net_vf_transmit_packets_total{vf="0"}'})
        result: list[dict[str, list[str]]] = []
        for _ in range(240):
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{own}/api/v1/query?{query}", timeout=5) as answer:
                    result = json.load(answer)["data"]["result"]
            except OSError:
                continue
            if result:
                break
        assert float(result[0]["value"][1]) == snapshot["pfs"][0]["vfs"][0]["tx_frames"]
    finally:
        prometheus.terminate()
        prometheus.wait(30)
        server.should_exit = True
        thread.join(30)
