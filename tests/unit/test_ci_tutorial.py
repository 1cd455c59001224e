"""The workflow of the tutorial on CI: its steps are run as they stand; of `uses:` steps, what they bring is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from virtfn.api.image import current_image, make_image
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import find_qemu, install_qemu

FILES = Path(__file__).parents[2] / "docs" / "ci"
BROUGHT = {
    "actions/checkout": "the working folder, with ci/",
    "actions/setup-python": "this Python",
    "actions/cache": "what virtfn has cached on this machine: a hit",
    "actions/upload-artifact": "nothing that a later step needs",
}


def workflow() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((FILES / "workflow.yml").read_text())
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of the reader's: the files where the workflow says that they are to be."""
    (tmp_path / "ci").mkdir()
    for name in ("policy.yaml", "linux.yaml", "host.yaml", "test_policy.py"):
        shutil.copy(FILES / name, tmp_path / "ci")
    return tmp_path


def run_job(name: str, checkout: Path) -> list[str]:
    """Run all `run:` steps of a job as GitHub does, and return what each has printed."""
    # pip finds both installed, and may not ask an index: that is what this Python stands for.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    said = []
    for step in workflow()["jobs"][name]["steps"]:
        if "uses" in step:
            assert step["uses"].partition("@")[0] in BROUGHT
            continue
        if "cache-hit != 'true'" in step.get("if", ""):
            continue
        script = checkout / "step.sh"
        script.write_text(step["run"])
        log = checkout / "step.log"
        with log.open("w") as stream:  # a pipe would stay open as long as what a step leaves running
            done = subprocess.run(
                ["bash", "-e", script], cwd=checkout, env=environ, stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, timeout=1200,
            )  # fmt: skip
        said.append(log.read_text())
        assert done.returncode == 0, f"{step['name']}: {said[-1]}"
    return said


@pytest.mark.slow
def test_the_job_without_virtual_machines(checkout: Path) -> None:
    said = run_job("policy", checkout)
    assert any("passed" in text and "what arrived is what the lab expects" in text for text in said)
    assert any("3 passed" in text for text in said)


@pytest.mark.guest
def test_the_job_with_linux_guests(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_qemu()
    except VirtfnError:
        try:
            install_qemu()
        except VirtfnError as error:
            pytest.skip(f"not run: {error}")
    try:
        current_image()
    except VirtfnError:
        try:
            make_image()
        except VirtfnError as error:
            pytest.skip(f"not run: {error}")
    runtime = Path(f"/tmp/virtfn-ci-{os.getpid()}")  # short enough for sockets
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    try:
        said = run_job("linux", checkout)
        assert sum("3 packets transmitted, 3 received" in text for text in said) == 2
        assert sum("what arrived is what the lab expects" in text for text in said) == 2
        assert list((runtime / "virtfn").iterdir()) == []
    finally:
        shutil.rmtree(runtime)


def test_the_tutorial_shows_what_the_files_say() -> None:
    text = (FILES.parent / "tutorial" / "ci.md").read_text()
    code = (FILES / "test_policy.py").read_text()
    steps = [step.get("run", step.get("uses")) for job in workflow()["jobs"].values() for step in job["steps"]]
    shell = "\n".join(steps)
    for line in ("virtfn exec host -- ip link set eth0 vf 1 vlan 30", "10.83.0.2 || exit 1", "10.82.0.3 || exit 1"):
        assert line in text
        assert line in shell
    for line in ("pip install virtfn pytest", "virtfn run ci/policy.yaml --json policy.json", "pytest ci"):
        assert line in text
        assert line in steps
    assert 'assert heard == {"client": 5000, "tenant": 0, "slow": 5000}' in text
    assert 'assert heard == {"client": 5000, "tenant": 0, "slow": 5000}' in code
