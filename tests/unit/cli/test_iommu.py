"""`virtfn iommu` against a lab that really runs in a process of its own, and against saved states."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unit.rig import lab_text

Result = tuple[int, str, str]
COMMAND = [sys.executable, "-c", "from virtfn.cli.main import main; main()"]


def error_line(result: Result, status: int) -> str:
    """The one line of a command that failed."""
    code, _, err = result
    assert code == status, result
    assert err.startswith("virtfn: ")
    assert err.count("\n") == 1
    return err


class Lab:
    """A lab kept up by `virtfn run --keep`; `end` interrupts it and returns what it said."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "lab.yaml").write_text(lab_text(workload="{kind: pairs, frames: 500}"))
        self.state = folder / "state.npz"
        self.process = subprocess.Popen(
            [*COMMAND, "run", str(folder / "lab.yaml"), "--keep", "--save-iommu", str(self.state), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said: list[str] = []
        for line in self.process.stdout:
            self.said.append(line)
            if line == "ready: rig is kept up\n":
                return
        self.stop()
        raise AssertionError(f"it ended: {self.said}")

    def stop(self) -> None:
        """Leave no process behind, whatever happened."""
        self.process.kill()
        self.process.communicate(timeout=60)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.stop()

    def end(self, number: int = signal.SIGINT) -> Result:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.said) + out, err


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made
        code, out, err = made.end()
        assert (code, "Traceback" in err) == (0, False), err
        assert "passed every frame arrived once" in out


def test_a_lab_that_runs_shows_its_domains(lab: Lab, virtfn: Callable[..., Result]) -> None:
    code, out, _ = virtfn("iommu", "show", "--json", "-")
    assert code == 0
    document = json.loads(out)
    assert {"domains", "iotlb", "faults"} <= set(document)
    assert document["source"] == "lab rig"
    assert document["unit"]["dma"]
    assert document["unit"]["interrupts"]
    first, second = document["domains"]
    assert {"id", "rids", "mappings"} <= set(first)
    assert first["mappings"] == [{"iova": 0, "bytes": 8 << 20, "read": True, "write": True}]
    assert sum(piece["bytes"] for piece in second["targets"]) == 8 << 20
    assert [len(domain["rids"]) for domain in (first, second)] == [1, 1]
    assert document["iotlb"]["hits"] > 1000 > document["iotlb"]["misses"] > 0
    assert {use["page_bytes"] for use in document["iotlb"]["in_use"]} <= {4096, 2 << 20}
    assert document["interrupts"]
    assert document["faults"] == []
    assert document["broken"] == []
    assert not document["truncated"]


def test_a_lab_that_runs_explains_a_request(lab: Lab, virtfn: Callable[..., Result], tmp_path: Path) -> None:
    domains = json.loads(virtfn("iommu", "show", "--json", "-", "--lab", "rig")[1])["domains"]
    rid, target = domains[0]["rids"][0], domains[0]["targets"][0]
    file = tmp_path / "explanation.json"
    code, out, _ = virtfn("iommu", "explain", rid, "0x123", "--write", "--json", str(file))
    assert code == 0
    said = json.loads(file.read_text())
    assert (said["rid"], said["iova"], said["write"]) == (rid, 0x123, True)
    assert said["verdict"]["outcome"] == "page"
    assert said["verdict"]["hpa"] == target["hpa"] + 0x123
    assert said["caches"]["context"] == "equal"
    for words in ("root entry", "context entry", "level 4 entry 0", "read and write so far", "2 MiB page"):
        assert words in out
    code, out, _ = virtfn("iommu", "explain", rid.removeprefix("0000:"), str(8 << 20))
    assert code == 0, "a fault is an answer"
    assert "fault  0x6, read not allowed; recorded" in out
    number = int(rid[5:7], 16) << 8 | int(rid[8:10], 16) << 3 | int(rid[-1])
    code, out, _ = virtfn("iommu", "explain", f"{number:#x}", "0xfee00000")
    assert "compatibility format blocked" in out
    code, out, _ = virtfn("iommu", "explain", "0000:00:1f.0", "0")
    assert "root not present" in out or "context not present" in out


def test_text_for_people(lab: Lab, virtfn: Callable[..., Result]) -> None:
    code, out, err = virtfn("iommu", "show")
    assert (code, err) == (0, "")
    for words in (
        "DMA remapping on",
        "domain 1",
        "0x0-0x7fffff",
        "8 MiB",
        "rw",
        "posted to",
        "by the IOTLB",
        "no faults",
    ):
        assert words in out


def test_the_saved_state_says_the_same(lab: Lab, virtfn: Callable[..., Result]) -> None:
    live = json.loads(virtfn("iommu", "show", "--json", "-")[1])
    state = str(lab.state)
    code, out, _ = virtfn("iommu", "show", "--state", state, "--json", "-")
    saved = json.loads(out)
    assert code == 0
    assert saved["source"] == state
    for key in ("unit", "domains", "interrupts", "broken", "iotlb", "faults"):
        assert saved[key] == live[key], key
    rid = live["domains"][0]["rids"][0]
    documents = [
        json.loads(virtfn("iommu", "explain", rid, "0x1000", "--json", "-", *source)[1])
        for source in ([], ["--state", state])
    ]
    assert documents[1]["caches"] is None
    assert documents[0]["steps"] == documents[1]["steps"]
    assert documents[0]["verdict"] == documents[1]["verdict"]


def test_a_second_lab_of_the_name_is_refused(lab: Lab) -> None:
    again = subprocess.run(
        [*COMMAND, "run", str(lab.state.parent / "lab.yaml")], capture_output=True, text=True, check=False, timeout=60
    )
    assert again.returncode == 1
    assert "a lab called rig is running" in again.stderr
    assert "EADDRINUSE" in again.stderr


def test_sigterm_ends_a_kept_lab_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtfn: Callable[..., Result]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Lab(tmp_path, "--json", str(tmp_path / "report.json")) as lab:
        code, out, err = lab.end(signal.SIGTERM)
    assert (code, "Traceback" in err) == (0, False), err
    assert "passed" in out
    assert json.loads((tmp_path / "report.json").read_text())["totals"]["frames"] == 1000
    assert list((tmp_path / "virtfn").iterdir()) == []
    assert "no lab is running" in error_line(virtfn("iommu", "show"), 1)


def test_a_killed_lab_is_not_found_and_its_name_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtfn: Callable[..., Result]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Lab(tmp_path) as lab:
        assert lab.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "virtfn").iterdir()] == ["rig.sock"]
    assert "no lab is running" in error_line(virtfn("iommu", "show"), 1)
    with Lab(tmp_path) as lab:
        assert virtfn("iommu", "show")[0] == 0
        assert lab.end()[0] == 0


# Input that is wrong.


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("show", "--lab", "other"), 1, "no lab called other is running"),
        (("show", "--lab", "../x"), 2, "is not the name of a lab"),
        (("show", "--lab", "a", "--state", "b"), 2, "give one"),
        (("show", "--state", "/nowhere/state"), 2, "cannot be read"),
        (("show", "--state", "/dev/null"), 2, "is no saved state"),
        (("show", "--json", "/nowhere/x"), 2, "cannot be written"),
        (("explain", "zz", "0"), 2, "is no requester like 0000:02:10.0"),
        (("explain", "01:20.0", "0"), 2, "is no requester"),
        (("explain", "10000", "0"), 2, "is no requester"),
        (("explain", "-1", "0"), 2, "-1"),
        (("explain", "0x1_0", "0"), 2, "is no requester"),
        (("explain", "02:10.0", "0x10000000000000000"), 2, "is no number of 64 bits"),
        (("explain", "02:10.0", "12q"), 2, "is no number of 64 bits"),
        (("explain", "02:10.0", "0xfee00000", "--data", "0x100000000"), 2, "is no number of 32 bits"),
        (("explain", "02:10.0"), 2, "IOVA"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    virtfn: Callable[..., Result], arguments: tuple[str, ...], status: int, words: str
) -> None:
    assert words in error_line(virtfn("iommu", *arguments), status)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom virtfn.cli.main import main\n"
        "try:\n    main(['iommu', 'explain', '--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'numpy', 'numba', 'rich'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


def test_questions_do_not_wait_for_the_end_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the data plane moves frames, the lab answers."""
    from virtfn.api.control import ask
    from virtfn.machine.ports import VirtfnError

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "lab.yaml").write_text(lab_text(workload="{kind: pairs, frames: 10000000}"))
    process = subprocess.Popen(
        [*COMMAND, "run", str(tmp_path / "lab.yaml")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        seen = []
        deadline = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < deadline and process.poll() is None:
            try:
                document = ask("iommu.show", {})
            except VirtfnError:
                time.sleep(0.02)
                continue
            assert isinstance(document, dict)
            if document["iotlb"]["hits"]:
                seen.append(document["iotlb"]["hits"])
        assert len(seen) == 2, process.poll()
        assert seen[0] < seen[1], "it moved frames between the answers"
    finally:
        process.kill()
        process.communicate(timeout=60)
