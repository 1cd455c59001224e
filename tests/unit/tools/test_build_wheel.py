"""The wheel with compiled kernels, in an empty environment: its first run compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from virtfn.kernels._objects import BASELINE, why_not_shipped
from virtfn.kernels.stray import CHECKED
from virtfn.kernels.warm import KERNELS

ROOT = Path(__file__).resolve().parents[3]
PLAIN_PROCESSOR = """
    import llvmlite.binding as binding
    features = binding.get_host_cpu_features()
    features["avx2"] = False
    binding.get_host_cpu_features = lambda: features
    from virtfn.cli.main import main
    main(["run", "--json", "-"])
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHECKED, reason="not run: a wheel has ordinary kernels"),
    pytest.mark.skipif(bool(why_not_shipped()), reason="not run: this processor cannot run what the wheel has"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it, from PyPI what it needs; the Python that has it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, str(ROOT / "tools/build_wheel.py"), str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    venv.create(folder / "venv", with_pip=True)
    made = folder / "venv/bin/python"
    pip = [made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    subprocess.run([*pip, wheel], check=True)
    return made


def run(command: list[str | Path], cache: Path) -> tuple[dict[str, float], str]:
    """Run a lab with an empty cache; return its times and what it said meanwhile."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTFN", "NUMBA"))}
    done = subprocess.run(
        command, env={**environment, "XDG_CACHE_HOME": str(cache)}, cwd=cache, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_the_first_run_compiles_nothing(python: Path, tmp_path: Path) -> None:
    report, _ = run([python.parent / "virtfn", "run", "--json", "-"], tmp_path)
    assert report["compile_s"] == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.long
def test_another_processor_compiles_and_says_so(python: Path, tmp_path: Path) -> None:
    code = "\n".join(line[4:] for line in PLAIN_PROCESSOR.splitlines())
    report, _ = run([python, "-c", code], tmp_path)
    assert report["compile_s"] > 0
    assert len(list(tmp_path.rglob("*.o"))) == KERNELS[False]
    said = "from virtfn.kernels import warm; print(warm.phase())"
    code = code.replace("from virtfn.cli.main import main", said).replace('main(["run", "--json", "-"])', "")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "other")}
    words = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert words == (
        "compiling kernels (first run only): "
        f"those that came with virtfn are for {BASELINE}, and this processor lacks avx2\n"
    )
