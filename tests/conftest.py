"""Labs that tests run are not those of whoever runs the tests: their sockets are in a folder of this session."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["virtfn.pytest"]

# What tests start inherits what is ignored: a shell's `&` ignores SIGINT, nohup SIGHUP.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks: else it takes no notice of them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, with `--dist loadgroup`, what shares a pair of guests, whom nobody serves meanwhile, and files."""
    for item in items:
        shared = "pair" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("pair" if shared else str(item.path)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run what would not be kept together: xdist says so in the names of tests."""
    apart = [item.nodeid for item in session.items if "@" not in item.nodeid]
    if apart and getattr(session.config.option, "loadgroup", False):
        raise pytest.UsageError(f"pytest-xdist does not keep {apart[0]} together with its group")
