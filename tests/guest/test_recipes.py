"""The recipes of docs/uplinks.md, typed as they stand there: labs of examples/uplinks, passt, a bridge, QEMU."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from guest.recipes import PAGE, read_recipes, terminals
from unit.vmm.uplink.outside import obstacle_to_taps, own_network
from virtfn.api.image import current_image, make_image
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu, cache_folder

pytestmark = pytest.mark.guest

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = read_recipes(PAGE.read_text(encoding="utf-8"))
LONG = ("No uplink", "This machine's", "Two labs", "Two guests", "A virtual machine")
ANSWERED = re.compile(r"(\d+) packets transmitted, \1 received")


@pytest.fixture
def folder() -> Iterator[Path]:
    """The examples, in a folder of the tests' own that passt reaches, which root's becomes nobody."""
    with tempfile.TemporaryDirectory(prefix="virtfn-recipe-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        made = Path(name) / "examples"
        shutil.copytree(EXAMPLES, made)
        yield made / "uplinks"


@pytest.fixture
def environ(qemu: Qemu, folder: Path) -> Mapping[str, str]:
    """What commands see: virtfn, QEMU and sudo on the PATH; labs that are nobody else's."""
    try:
        current_image()
    except VirtfnError:
        try:
            make_image()
        except VirtfnError as error:
            pytest.skip(f"not run: {error}")
    programs, runtime = folder.parents[1] / "bin", folder.parents[1] / "run"
    programs.mkdir()
    runtime.mkdir(mode=0o700)
    virtfn = [sys.executable, "-c", "from virtfn.cli.main import main; main()"]
    data = [word for place in qemu.data_folders for word in ("-L", str(place))]
    lines = {
        "virtfn": shlex.join(virtfn),
        "qemu-system-x86_64": shlex.join([*qemu.command, *data]),
        "sudo": "exec",
    }
    for name, line in lines.items():
        (programs / name).write_text(f'#!/bin/sh\n{line if line == "exec" else "exec " + line} "$@"\n')
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        **qemu.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(runtime),
        "USER": os.environ.get("USER", "root"),
    }


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=pytest.mark.long if title.startswith(LONG) else ()) for title in RECIPES]
)
def test_a_recipe_does_what_the_page_says(title: str, environ: Mapping[str, str], folder: Path, tmp_path: Path) -> None:
    lines = RECIPES[title]
    typed = "\n".join(line for _, _, line in lines)
    if "passt " in typed and shutil.which("passt") is None:
        pytest.skip("not run: passt is not installed")
    if "sudo " in typed and (why := obstacle_to_taps()):
        pytest.skip(f"not run: {why}")
    if "passt " in typed and os.geteuid() == 0:
        folder.chmod(0o777)  # root's passt becomes nobody, and makes its socket there
    kernel = str(cache_folder() / "images")
    replaced = {"8000": free_port(), "~/.cache/virtfn/qemu/images": kernel}
    with (
        own_network() if "sudo " in typed else nullcontext(),
        terminals(folder, environ, tmp_path, **replaced) as opened,
    ):
        opened.type(lines)
        for line, said in opened.outputs:
            if " ping " in line:
                assert ANSWERED.search(said), said
            if " wget " in line:
                assert said == (folder / line.rpartition("/")[2]).read_text()
            if line.startswith("virtfn run"):
                assert "\npassed " in said
        for said in opened.kept():
            assert "\npassed " in said, said
