"""The command line against an engine of the tests' own: statuses, one-line errors, where output goes."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from unit.reports import REPORT
from virtfn.api.progress import Progress
from virtfn.api.report import Report
from virtfn.cli.main import MAX_FRAME_BYTES
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.i82576.desc import MAX_FRAME
from virtfn.machine.ports import VirtfnError


class FakeMachine:
    def dump(self) -> str:
        return "01:00.0 Ethernet controller\n00: 86 80\n"

    def tree(self) -> str:
        return "[0000:00]\n"

    def json(self) -> list[dict[str, str]]:
        return [{"address": "0000:01:00.0"}]


class Engine:
    """Stands in for virtfn.api.run and virtfn.api.bench; `act` is what a run does."""

    def __init__(self) -> None:
        self.report: Report = copy.deepcopy(REPORT)
        self.act: Callable[[], None] = lambda: None
        self.calls: list[dict[str, object]] = []
        self.bench_calls: list[tuple[list[int], int, float]] = []

    def run_lab(
        self,
        lab: object,
        *,
        progress: Callable[[Progress], None],
        finished: Callable[[Report], None],
        ready: Callable[[], None],
        **files: object,
    ) -> Report:
        self.calls.append({"lab": lab, **files})
        progress(Progress("compiling kernels (first run only)", steps=3, total_steps=17))
        progress(Progress("running", 1.0, 5, 10, 1.0, 2.0, (("a", 3, 2, 0), ("b", 3, 2, 1))))
        self.act()
        finished(self.report)
        if files["keep"]:
            ready()
        return self.report

    @contextmanager
    def machine_for(self, lab: object) -> Iterator[FakeMachine]:
        yield FakeMachine()

    def run_bench(self, frame_bytes: list[int], vfs: int, seconds: float, progress: object) -> dict[str, object]:
        self.bench_calls.append((frame_bytes, vfs, seconds))
        point = {"path": "vf-to-vf", "traffic": "like", "frame_bytes": 64, "mpps": 9.5, "gbps": 4.6}
        point |= {"copy_ratio": 0.25, "vfs": vfs}
        return {"cpu": "a processor", "copy_gbps": {"64": 18.4}, "points": [point]}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine()
    for name in ("run", "bench"):
        module = types.ModuleType(f"virtfn.api.{name}")
        module.__dict__.update(run_lab=fake.run_lab, machine_for=fake.machine_for, run_bench=fake.run_bench)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


Result = tuple[int, str, str]


@pytest.fixture
def virtfn(engine: Engine, virtfn: Callable[..., Result]) -> Callable[..., Result]:
    return virtfn


def error_line(result: Result, status: int) -> str:
    """The error of a command that failed: exactly one line on standard error, and nothing like a traceback."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("virtfn: ")]
    assert code == status
    assert len(lines) == 1
    assert err.rstrip("\n").endswith(lines[0])
    assert "Traceback" not in err
    return lines[0].removeprefix("virtfn: ")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom virtfn.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'numpy', 'numba', 'pydantic', 'rich', 'ruamel.yaml', 'dpkt', 'pcapng'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("run", "compare", "lspci", "bench", "doctor"):
        assert f"\n  {command} " in done.stdout


def test_without_a_command_it_shows_the_help(virtfn: Callable[..., Result]) -> None:
    code, _, err = virtfn()
    assert code == 2
    assert "Commands:" in err


def test_version(virtfn: Callable[..., Result]) -> None:
    assert virtfn("--version") == (0, "virtfn 0.1.0\n", "")


def test_run_shows_a_table_and_a_verdict(virtfn: Callable[..., Result], engine: Engine) -> None:
    code, out, err = virtfn("run")
    assert code == 0
    for text in ("0000:02:10.0", "12,345", "96.0 % by the IOTLB", "passed every frame arrived once"):
        assert text in out
    assert "compiling kernels (first run only)" in err
    assert "running 5 of 10 frames" in err
    assert engine.calls[0]["capture"] is None
    assert "\x1b" not in out + err


def test_run_writes_json(virtfn: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    code, out, _ = virtfn("run", "--json", str(path))
    assert code == 0
    assert json.loads(path.read_text()) == REPORT
    assert "passed" in out
    code, out, err = virtfn("run", "--json", "-")
    assert code == 0
    assert json.loads(out) == REPORT
    assert err == ""


def test_run_passes_its_files_on(virtfn: Callable[..., Result], engine: Engine, tmp_path: Path) -> None:
    capture, trace = tmp_path / "c.pcapng", tmp_path / "t.txt"
    assert virtfn("run", "--capture", str(capture), "--trace", str(trace))[0] == 0
    assert (engine.calls[0]["capture"], engine.calls[0]["trace"]) == (capture, trace)


@pytest.mark.parametrize("key", ["lost", "corrupt", "reordered"])
def test_a_run_that_cannot_account_for_every_frame_fails(
    virtfn: Callable[..., Result], engine: Engine, tmp_path: Path, key: str
) -> None:
    engine.report["guests"][1][key] = 3  # type: ignore[literal-required]
    result = virtfn("run", "--json", str(tmp_path / "x.json"))
    assert "3 " in error_line(result, 1)
    assert "FAILED frames are not accounted for" in result[1]
    assert json.loads((tmp_path / "x.json").read_text())["guests"][1][key] == 3


def test_what_can_be_said_is_said_when_a_disk_is_full(virtfn: Callable[..., Result], engine: Engine) -> None:
    result = virtfn("run", "--json", "/dev/full")
    assert error_line(result, 1) == "/dev/full: cannot be written (No space left on device)"
    assert "passed every frame arrived once" in result[1]
    engine.report["unwritten"] = ["x.pcapng: cannot be written (No space left on device)"]
    result = virtfn("run")
    assert error_line(result, 1) == "x.pcapng: cannot be written (No space left on device)"
    assert "x.pcapng: cannot be written" in result[1]
    assert "passed every frame arrived once" in result[1]


def test_what_of_a_capture_is_not_used_is_said_and_is_no_failure(virtfn: Callable[..., Result], engine: Engine) -> None:
    engine.report["notes"] = ["x.pcap: ends in frame 7"]
    code, out, _ = virtfn("run")
    assert code == 0
    assert "x.pcap: ends in frame 7" in out


def test_a_lab_that_is_kept_says_when_it_is_ready(virtfn: Callable[..., Result]) -> None:
    code, out, _ = virtfn("run", "--keep")
    assert code == 0
    assert out.splitlines()[-1] == "ready: two-guests is kept up"
    code, out, _ = virtfn("run", "--keep", "--json", "-")
    assert json.loads(out) == REPORT


def test_a_dash_is_standard_output_for_each_output_and_one_has_it_alone(
    virtfn: Callable[..., Result], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("--capture", "--trace", "--save-iommu"):
        assert virtfn("run", option, "-")[:2] == (0, "")
    assert engine.calls[-1]["save_state"] == Path("-")
    line = error_line(virtfn("run", "--json", "-", "--trace", "-"), 2)
    assert line.startswith("--json and --trace both want standard output; give one a file")
    monkeypatch.chdir(tmp_path)
    assert virtfn("run", "--trace", "./-")[0] == 0
    assert engine.calls[-1]["trace"] == tmp_path / "-"


def test_a_dash_is_standard_input_for_a_lab(
    virtfn: Callable[..., Result], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"name: x\npfs: [{name: p, modl: 1}]\nguests: []\nworkload: {kind: pairs}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert error_line(virtfn("run", "-"), 2).startswith("standard input:2: pfs[0].modl: is not a key here")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"#" * (129 << 10))))
    assert "is larger than 128 KiB" in error_line(virtfn("run", "-"), 2)


def test_drops_with_a_reason_are_accounted_for(virtfn: Callable[..., Result], engine: Engine) -> None:
    engine.report["pfs"][0]["switch"]["dropped"] = {"spoofed": 4}
    engine.report["guests"][0]["dropped"] = {"spoofed": 4}
    code, out, _ = virtfn("run")
    assert code == 0
    assert "4 dropped: 4 spoofed" in out
    assert "4 frames were dropped, each for a counted reason" in out


def test_a_broken_lab_is_status_2(virtfn: Callable[..., Result], engine: Engine, tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text("name: x\npfs: [{name: p, modl: 1}]\nguests: []\nworkload: {kind: pairs}\n")
    assert error_line(virtfn("run", str(lab)), 2).startswith(f"{lab}:2: pfs[0].modl: is not a key here; did you mean")
    assert error_line(virtfn("run", str(tmp_path / "no.yaml")), 2).startswith(
        f"{tmp_path / 'no.yaml'}:1: cannot be read"
    )
    assert error_line(virtfn("lspci", str(lab)), 2)
    assert engine.calls == []


def test_what_is_not_supported_is_status_1_and_names_the_errno(
    virtfn: Callable[..., Result], engine: Engine, tmp_path: Path
) -> None:
    lab = tmp_path / "lab.yaml"
    guests = "".join(f"  - {{name: g{n}, vmm: qemu, nic: {{pf: p, vf: {n}}}}}\n" for n in range(2))
    lab.write_text(
        f"name: x\npfs: [{{name: p, sr-iov: {{total-vfs: 2}}}}]\nguests:\n{guests}workload: {{kind: broadcast}}\n"
    )
    line = error_line(virtfn("run", str(lab)), 1)
    assert line.startswith(f"{lab}:6: workload.kind: broadcast by qemu guests is not supported")
    assert line.endswith("(EOPNOTSUPP)")
    assert engine.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("run", "--frob"),
        ("run", "a", "b"),
        ("bench", "--vfs", "9"),
        ("bench", "--vfs", "x"),
        ("bench", "--frame-bytes", "63"),
        ("bench", "--frame-bytes", "9729"),
        ("bench", "--seconds", "nan"),
        ("bench", "--seconds", "0"),
        ("lspci", "--dump", "--json", "-"),
        ("compare", "--frob"),
        ("compare", "--guests", "0"),
        ("compare", "--guests", "9"),
        ("compare", "--guests", "1,,2"),
        ("compare", "--guests", "two"),
        ("compare", "--guests", "9" * 5000),
        ("compare", "--guests", "\u0661"),
        ("compare", "--guests", ""),
        ("compare", "--json", "-", "--report", "-"),
        ("compare", "--json", "/no/such/folder/x.json"),
        ("run", "--json"),
    ],
)
def test_wrong_usage_is_status_2(virtfn: Callable[..., Result], arguments: tuple[str, ...]) -> None:
    assert "--help" in error_line(virtfn(*arguments), 2)


def test_files_that_cannot_be_written_are_refused_before_the_work(
    virtfn: Callable[..., Result], engine: Engine, tmp_path: Path
) -> None:
    lab = tmp_path / "lab.yaml"
    for option in ("--json", "--capture", "--trace"):
        for name in (str(tmp_path), str(tmp_path / "none" / "x"), "", "x" * 5000, "a\0b"):
            assert "cannot be written" in error_line(virtfn("run", option, name), 2)
    assert "is the file of --json" in error_line(virtfn("run", "--json", str(lab), "--trace", str(lab)), 2)
    lab.write_text("name: x\n")
    assert "is an input of this run" in error_line(virtfn("run", str(lab), "--json", str(lab)), 2)
    assert lab.read_text() == "name: x\n"
    assert engine.calls == []


def test_a_capture_is_not_overwritten_by_the_run_that_reads_it(
    virtfn: Callable[..., Result], engine: Engine, tmp_path: Path
) -> None:
    lab = Path(__file__).parents[3] / "examples" / "pcap.yaml"
    capture = lab.parent / "captures" / "http.pcap"
    before = capture.read_bytes()
    assert "is an input of this run" in error_line(virtfn("run", str(lab), "--capture", str(capture)), 2)
    assert capture.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="not run: no /dev/full")
def test_a_full_disk_is_status_1(virtfn: Callable[..., Result]) -> None:
    assert "/dev/full: cannot be written (No space left" in error_line(virtfn("run", "--json", "/dev/full"), 1)


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_lines_that_go_with_an_error_stay_lines(virtfn: Callable[..., Result], engine: Engine) -> None:
    engine.act = raising(
        VirtfnError("no QEMU here", errno_name="ENOENT", details="Get one:\n  here:   a\x1bb\n  there:  c")
    )
    code, _, err = virtfn("run")
    assert code == 1
    shown = ["virtfn: no QEMU here (ENOENT)", "  Get one:", "    here:   a\\x1bb", "    there:  c"]
    assert err.splitlines()[-4:] == shown


def test_every_error_is_one_line(
    virtfn: Callable[..., Result], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.act = raising(VirtfnError("VF 3: the PF said\nno", errno_name="EBUSY"))
    assert error_line(virtfn("run"), 1) == "VF 3: the PF said no (EBUSY)"
    engine.act = raising(RuntimeError("odd\x1b[31m thing"))
    line = error_line(virtfn("run"), 1)
    assert line.startswith("this is a bug in virtfn: RuntimeError: odd\\x1b[31m thing; set VIRTFN_DEBUG=1")
    engine.act = raising(MemoryError())
    assert "memory is exhausted" in error_line(virtfn("run"), 1)
    engine.act = raising(OSError(28, "No space left on device"))
    assert error_line(virtfn("run"), 1) == "standard output: No space left on device"
    engine.act = raising(FileNotFoundError(2, "No such file", "x"))
    assert "this is a bug in virtfn: FileNotFoundError" in error_line(virtfn("run"), 1)
    engine.act = raising(KeyboardInterrupt())
    assert error_line(virtfn("run"), 130) == "interrupted"
    monkeypatch.setenv("VIRTFN_DEBUG", "1")
    engine.act = raising(RuntimeError("odd"))
    code, _, err = virtfn("run")
    assert code == 1
    assert "Traceback" in err


def test_lspci(virtfn: Callable[..., Result], tmp_path: Path) -> None:
    assert virtfn("lspci") == (0, "[0000:00]\n", "")
    assert virtfn("lspci", "--dump")[1] == FakeMachine().dump()
    assert json.loads(virtfn("lspci", "--json", "-")[1]) == FakeMachine().json()
    path = tmp_path / "x.json"
    assert virtfn("lspci", "--dump", "--json", str(path))[1] == FakeMachine().dump()
    assert json.loads(path.read_text()) == FakeMachine().json()


def test_the_largest_frame_is_the_cards() -> None:
    assert MAX_FRAME_BYTES == MAX_FRAME + FCS_BYTES


def test_bench(virtfn: Callable[..., Result], engine: Engine) -> None:
    code, out, _ = virtfn("bench", "--frame-bytes", "64", "--frame-bytes", "9728", "--vfs", "8", "--seconds", "0.5")
    assert code == 0
    assert engine.bench_calls == [([64, 9728], 8, 0.5)]
    assert "like" in out
    assert "18.40" in out
    assert "25 %" in out
    assert json.loads(virtfn("bench", "--json", "-")[1])["cpu"] == "a processor"


def test_doctor(virtfn: Callable[..., Result]) -> None:
    code, out, err = virtfn("doctor", "--json", "-")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert set(document["can"]) == {"run", "qemu", "host", "hardware", "judges"}
    code, out, _ = virtfn("doctor")
    assert code == 0
    assert "this machine is ready for: embedded labs" in out


def start(*arguments: str, **streams: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from virtfn.cli.main import main; main()", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **streams)  # type: ignore[call-overload,no-any-return]


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    child = start("--help", stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    _, err = child.communicate(timeout=60)
    assert err == b""
    assert child.returncode in (0, 141)


def test_closed_streams_are_no_error() -> None:
    command = f"exec {sys.executable} -c 'from virtfn.cli.main import main; main()' --help >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


def test_standard_output_that_is_full() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("not run: no /dev/full")
    with open("/dev/full", "wb") as full:
        child = start("--help", stdout=full)
        _, err = child.communicate(timeout=60)
    assert err == b"virtfn: standard output: No space left on device\n"
    assert child.returncode == 1
