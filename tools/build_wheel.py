"""Build a wheel that has the kernels compiled, for x86-64-v3: `tools/build_wheel.py [FOLDER]`, dist/ without it.

They are compiled by this Python's virtfn in a cache of their own. pip fetches hatchling, and builds as for any package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def compile_kernels(folder: Path) -> None:
    """Compile all kernels that labs need into an empty folder, with a note of what they are made of."""
    from virtfn.kernels import _objects

    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("VIRTFN_CHECKED", "NUMBA_BOUNDSCHECK")},
        "PYTHONPATH": str(ROOT / "src"),
        "XDG_CACHE_HOME": str(folder),
        "NUMBA_CPU_NAME": _objects.BASELINE,
        "NUMBA_CPU_FEATURES": f"+{_objects.BEYOND}",
    }
    subprocess.run(
        [sys.executable, "-c", "from virtfn.kernels import warm; warm.load()"], env=environment, cwd="/", check=True
    )
    compiled = folder / "compiled"
    compiled.mkdir()
    for path in folder.rglob("*.o"):
        path.rename(compiled / path.name)
    (compiled / "made.json").write_text(json.dumps({"sources": _objects.sources(), "processor": _objects.BASELINE}))


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    with tempfile.TemporaryDirectory() as name:
        compile_kernels(Path(name))
        environment = {**os.environ, "VIRTFN_COMPILED": str(Path(name) / "compiled")}
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--wheel-dir", str(target), str(ROOT)], env=environment, check=True)


if __name__ == "__main__":
    main()
