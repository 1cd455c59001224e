"""The example project runs here as it would elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[3] / "examples" / "pytest" / "test_tenants.py"
_spec = importlib.util.spec_from_file_location("test_tenants", _PATH)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
globals().update({name: value for name, value in vars(_module).items() if name == "lab" or name.startswith("test_")})


def test_it_is_there() -> None:
    assert sum(name.startswith("test_") for name in vars(_module)) >= 6
