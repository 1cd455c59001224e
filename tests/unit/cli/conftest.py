"""The command line as a function."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from virtfn.cli.main import main


@pytest.fixture
def virtfn(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line: (status, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call
