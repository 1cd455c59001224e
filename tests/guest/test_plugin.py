"""The pytest plugin with a Linux guest: the example project runs here as it would elsewhere; one boot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

_EXAMPLE = Path(__file__).parents[2] / "examples" / "pytest" / "test_linux.py"


@pytest.mark.usefixtures("qemu", "image")
def test_the_example_with_linux(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(_EXAMPLE),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout, result.stdout
    assert "skipped" not in result.stdout, result.stdout
