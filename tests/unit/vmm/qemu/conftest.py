import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from virtfn.vmm.qemu import Acceleration, Machine, Qemu, QemuGuest

FAKE = Path(__file__).with_name("fakeqemu.py")


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep runtime and cache folders away from the user's; the runtime one short, for it holds sockets."""
    with tempfile.TemporaryDirectory(prefix="vf") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    file = tmp_path / "vmlinuz"
    file.write_bytes(b"MZ")
    return file


@pytest.fixture
def guest(kernel: Path) -> Iterator[Callable[..., QemuGuest]]:
    """Make guests of a QEMU that is played; they are closed at the end."""
    qemu = Qemu(FAKE, (sys.executable, "-S", str(FAKE)), (11, 1, 0))
    with ExitStack() as stack:

        def make(*words: str, log: Path | None = None, **settings: object) -> QemuGuest:
            extra = tuple(part for word in words for part in ("-fake", word))
            machine = Machine("a", kernel, extra=extra, **settings)  # type: ignore[arg-type]
            return stack.enter_context(QemuGuest(machine, qemu, Acceleration("tcg", "it is played"), log=log))

        yield make
