from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest

from virtfn.api import comparison
from virtfn.api.compare import run_compare
from virtfn.api.comparepage import make_page
from virtfn.api.comparerig import LOADS, Plan
from virtfn.api.comparison import Comparison
from virtfn.api.lab import LabError, load_lab
from virtfn.api.prices import load_prices
from virtfn.iomodels.model import MODELS
from virtfn.machine.ports import VirtfnError
from virtfn.sim.costs import CAUSES, PRICES, Price, price

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = Plan(frames=1500, guests=(1, 2), memory_mib=8)


@pytest.fixture(scope="module")
def document() -> Comparison:
    return run_compare(SMALL)


def test_the_document_has_the_keys_that_programs_read(document: Comparison) -> None:
    assert {"workload", "guests", "vmm", "models"} <= set(document)
    assert set(document["models"]) == {"split", "direct", "passthrough", "sriov"} == set(MODELS)
    assert document["guests"] == 2
    assert document["vmm"] == "embedded"
    for run in document["runs"]:
        for model in run["models"].values():
            assert {"delivered", "lost", "corrupt", "per_frame", "measured", "priced", "refused"} <= set(model)
            assert {
                "exits", "notifications", "copies", "bytes_copied", "interrupts", "guest_switches", "page_walks"
            } <= set(model["per_frame"])  # fmt: skip
            assert {"mpps", "gbps", "latency_us"} <= set(model["measured"])
            assert set(model["measured"]["latency_us"]) == {"p50", "p99", "p999"}
            assert {"cycles", "by_cause"} <= set(model["priced"])
    json.dumps(document, allow_nan=False)


def test_every_key_is_declared(document: Comparison) -> None:
    model = document["models"]["sriov"]
    for value, kind in (
        (document, comparison.Comparison), (model, comparison.ModelResult), (model["per_frame"], comparison.PerFrame),
        (model["measured"], comparison.Measured), (model["priced"], comparison.Priced),
        (model["loads"][0], comparison.Load), (document["throttle"][0], comparison.Throttle),
        (document["properties"][0], comparison.Property),
    ):  # fmt: skip
        assert set(value) <= set(get_type_hints(kind))


def test_every_key_is_in_the_reference() -> None:
    text = (EXAMPLES.parent / "docs/reference/compare-json.md").read_text(encoding="utf-8")
    kinds = (getattr(comparison, name) for name in comparison.__all__)
    missing = {key for kind in kinds for key in get_type_hints(kind) if f"`{key}`" not in text}
    assert not missing


def test_every_frame_is_accounted_for_and_every_property_holds(document: Comparison) -> None:
    for run in document["runs"]:
        for name, model in run["models"].items():
            if model["refused"]:
                assert (name, run["guests"]) == ("passthrough", 2)
                assert "no second guest" in model["refused"]
                continue
            assert (model["lost"], model["corrupt"]) == (0, 0), name
            assert model["delivered"] == 2 * run["guests"] * SMALL.frames
            assert [load["fps"] for load in model["loads"]] == list(LOADS)
            latency = model["measured"]["latency_us"]
            assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"]
    held = {p["name"]: p["holds"] for p in document["properties"]}
    timed = {p["name"] for p in document["properties"] if p["timed"]}
    assert timed == {"split-dom0-bottleneck", "direct-vmm-bottleneck", "direct-exits", "moderation"}
    assert [name for name, holds in held.items() if not holds and name not in timed] == []


def test_more_guests_than_vfs_are_refused_and_the_others_go_on() -> None:
    plan = Plan(frames=200, guests=(1,), memory_mib=8, loads=())
    from virtfn.api.compare import _refusal

    assert "a 82576 has 8 VFs, not 9" in _refusal(plan, "sriov", 9)
    assert not _refusal(plan, "split", 9)


def test_prices_multiply_counts_by_cause() -> None:
    costs = price({"exit_bar": 2, "copies": 1, "copy_bytes": 1000, "injected": 1, "posted": 3})
    assert costs["exits"] == (6000, 4000, 10000)
    assert costs["copies"][0] + costs["copied bytes"][0] == 2000
    assert costs["interrupts"][0] + costs["ends of interrupts"][0] == 6500
    assert costs["posted interrupts"][0] == 0
    assert {cause.price for cause in CAUSES.values()} == set(PRICES)
    assert all(p.low <= p.cycles <= p.high and p.source for p in PRICES.values())


def test_prices_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("exit: 8000\ncopy: {cycles: 100, low: 50, high: 200, source: mine}\n")
    prices = load_prices(file)
    assert prices["exit"] == Price(8000, 8000, 8000, "from prices.yaml")
    assert prices["copy"] == Price(100, 50, 200, "mine")
    assert prices["switch"] == PRICES["switch"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exits: 1", "1: exits: is no price; there are exit, notification"),
        ("exit: many", "1: exit: cycles must be a number from 0 to 1e9"),
        ("exit: -1", "cycles must be a number"),
        ("exit: true", "cycles must be a number"),
        ("exit: .nan", "cycles must be a number"),
        ("exit: {cycles: 5, low: 9}", "low, cycles, high must be in this order"),
        ("exit: {cycles: 5, colour: red}", "is not a key here"),
        ("exit: {low: 5}", "cycles must be a number"),
        ("", "1: is empty; give prices, like exit: 3000"),
        ("[1, 2]", "prices are a mapping of names to cycles"),
    ],
)
def test_a_wrong_price_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text + "\n")
    with pytest.raises(LabError, match=re.escape(said)):
        load_prices(file)


def test_a_lab_decides_frames_card_and_guests() -> None:
    plan = Plan.of(load_lab(EXAMPLES / "eight-vfs.yaml"))
    assert plan.guests == (1, 8)
    assert plan.frame_bytes == 64
    assert Plan.of(load_lab(EXAMPLES / "two-guests.yaml"), (1, 4)).guests == (1, 4)
    linux = load_lab(EXAMPLES / "linux-vms.yaml")
    assert (Plan.of(linux).vmm, Plan.of(linux).guests) == ("qemu", (2,))
    assert Plan.of(linux, (2, 4)).guests == (2, 4)
    with pytest.raises(VirtfnError, match="a Linux guest alone has nobody to talk to; use --guests 2,4"):
        Plan.of(linux, (1, 2))
    mixed = linux.model_copy(update={"guests": (*linux.guests, load_lab(EXAMPLES / "two-guests.yaml").guests[0])})
    with pytest.raises(VirtfnError, match="guests of one vmm are compared, not of both"):
        Plan.of(mixed)


def test_the_page_stands_alone(document: Comparison) -> None:
    pytest.importorskip("matplotlib", reason="not run: Matplotlib is not installed")
    page = make_page(document)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert page.count("<svg") == 5
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "<script" not in page


def test_the_page_in_a_browser(document: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="not run: Matplotlib is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("not run: Chromium is not installed")
    file = tmp_path / "page.html"
    file.write_text(make_page(document), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options = ["--window-size=1000,4000", f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", file.as_uri()]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"not run: Chromium does not start here: {done.stderr.strip()[-200:]}")
    assert "What an I/O model costs" in done.stdout
    assert done.stdout.count("<svg") == 5
