"""Put compiled kernels into the wheel that hatchling builds, where `build_wheel.py` has made some; else do nothing."""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledKernels(BuildHookInterface):  # type: ignore[misc]
    """Adds the folder that VIRTFN_COMPILED names. The code in it stands on Linux's C library, and on no Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Change what a wheel has; an editable one stays as it is."""
        folder = os.environ.get("VIRTFN_COMPILED")
        if folder and version == "standard":
            build_data["force_include"][folder] = "virtfn/kernels/compiled"
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"
