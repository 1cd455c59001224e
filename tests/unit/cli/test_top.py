"""`virtfn top`, against a lab of the tests' own: one table, JSON, and the screen with its keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from textual.widgets import DataTable, Static

from unit.api.test_rates import later, snapshot
from virtfn.api.session.snapshot import Snapshot
from virtfn.cli import topscreen
from virtfn.cli.main import main
from virtfn.cli.render.top import short
from virtfn.cli.topscreen import Top
from virtfn.machine.ports import VirtfnError


class Looks:
    """Answers each look with the next of a lab whose counters grow."""

    def __init__(self) -> None:
        self.number = 0
        self.gone = False

    def __call__(self, lab: str | None) -> Snapshot:
        if self.gone:
            raise VirtfnError("no lab called rates is running")
        self.number += 1
        found = later(float(self.number))
        found["guests"][0]["tx_frames"] = 100 * self.number
        found["guests"][1]["interrupts"] = 900 * self.number
        found["guests"][1]["name"] = "[red]b"
        return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    looks = Looks()
    for module in ("virtfn.api.rates", "virtfn.cli.topscreen"):
        monkeypatch.setattr(f"{module}.ask_snapshot", looks)
    monkeypatch.setattr("virtfn.api.control.only_lab", lambda lab: lab or "rates")
    return looks


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["top", *arguments])
    return int(end.value.code or 0)


def test_elsewhere_than_on_a_terminal_it_is_one_table(looks: Looks, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-d", "0.1") == 0
    out = capsys.readouterr().out
    assert looks.number == 2
    assert out.splitlines()[0].startswith("rates: ready, up for 12 s;")
    lines = [line for line in out.splitlines() if line.startswith(("pf0", "split"))]
    assert [line.split()[:3] for line in lines] == [
        ["pf0", "vf0", "a"],
        ["pf0", "vf1", "none"],
        ["split", "[red]b", "0"],
    ]
    assert "100" in lines[0]


def test_it_is_sorted_as_asked(looks: Looks, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-d", "0.1", "--sort", "irqs") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("pf0", "split"))]
    assert lines[0].startswith("split")


def test_json_has_each_sample(looks: Looks, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-d", "0.1", "-n", "3", "--json", "-") == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["samples"]
    assert [sample["elapsed_s"] for sample in document["samples"]] == [12.0, 13.0, 14.0]
    assert list(document["samples"][0]) == ["lab", "state", "elapsed_s", "interval_s", "rows"]
    assert list(document["samples"][0]["rows"][0]) == [
        *("function", "address", "guest", "tx_frames", "rx_frames", "bits"),
        *("drops", "drops_total", "interrupts", "exits"),
    ]


@pytest.mark.parametrize("arguments", [["-d", "0"], ["-d", "nan"], ["-n", "0"], ["--sort", "x"], ["a", "b"]])
def test_wrong_input_is_refused(looks: Looks, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_lab_that_is_gone_is_an_error(looks: Looks, capsys: pytest.CaptureFixture[str]) -> None:
    looks.gone = True
    assert run("-d", "0.1") == 1
    assert "no lab called rates" in capsys.readouterr().err


def test_numbers_are_short() -> None:
    assert [short(n) for n in (0, 0.42, 9.96, 999.4, 1000, 14_900, 1_490_000, 2.5e11)] == [
        *("0", "0.4", "10", "999", "1.00k", "14.9k", "1.49M", "250G"),
    ]


def first(screen: Top) -> str:
    return str(screen.query_one(DataTable).get_row_at(0)[0])


async def until(screen: Top, pilot: object, words: str) -> None:
    for _ in range(500):
        await asyncio.sleep(0.02)
        if words in str(screen.query_one("#head", Static).render()):
            return
    raise AssertionError(f"{words!r} never came")


def test_the_screen_shows_rates_and_keys_order_them(looks: Looks) -> None:
    async def go() -> None:
        screen = Top("rates", delay=0.1)
        async with screen.run_test(size=(120, 30)) as pilot:
            await until(screen, pilot, "first: most both ways")
            assert first(screen) == "pf0 vf0"
            assert str(screen.query_one(DataTable).get_row_at(2)[1]) == "[red]b"
            await pilot.press("i")
            assert first(screen) == "split"
            await pilot.press("p")
            await until(screen, pilot, "resting")
            before = looks.number
            await asyncio.sleep(0.4)
            assert looks.number <= before + 1
            await pilot.press("p")
            looks.gone = True
            await until(screen, pilot, "waiting for it")
            looks.gone = False
            await until(screen, pilot, "first: most interrupts")
            await pilot.press("q")
        assert screen.return_value is None

    asyncio.run(go())


def test_the_screen_ends_after_so_many_looks(looks: Looks) -> None:
    async def go() -> str | None:
        screen = Top("rates", delay=0.1, count=2)
        async with screen.run_test() as pilot:
            for _ in range(500):
                await pilot.pause(0.02)
                if not screen.is_running or looks.number >= 4:
                    break
        return screen.return_value

    assert asyncio.run(go()) is None
    assert 3 <= looks.number <= 4


def test_the_screen_says_why_it_ended(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topscreen, "_GONE_LOOKS", 1)
    looks.gone = True
    screen = Top("rates", delay=0.1, count=1)

    async def go() -> None:
        async with screen.run_test() as pilot:
            for _ in range(500):
                await pilot.pause(0.02)
                if screen.return_value is not None:
                    break

    asyncio.run(go())
    assert screen.return_value == "no lab called rates is running"


def test_snapshots_of_the_rig_are_of_the_shape_that_labs_have() -> None:
    assert set(snapshot()) == set(Snapshot.__annotations__)
