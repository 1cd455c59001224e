"""The doctor's findings as a person reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.cli.render.text import text
from virtfn.api.doctor import Machine, examine
from virtfn.cli.render.doctor import render_doctor


def test_every_finding_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("VIRTFN_QEMU", raising=False)
    document = examine(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: False))
    shown = text(render_doctor(document), 500)
    checks = document["checks"]
    assert isinstance(checks, list)
    for check in checks:
        (line,) = (line for line in shown.splitlines() if f" {check['name']}  " in line)
        assert (" ok " in line) is check["ok"]
        assert check["found"] in line
        assert check["remedy"] in line
    assert "this machine is ready for: embedded labs\n" in shown
