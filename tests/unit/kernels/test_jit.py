"""How Python calls kernels: by place, by name, with defaults; and what comes back."""

from __future__ import annotations

import numpy as np
import pytest

from virtfn.kernels._jit import kernel


@kernel
def weigh(a: int, b: int, factor: int = 10) -> int:
    return a * factor + b


@kernel
def divide(a: int, b: int) -> tuple[int, int]:
    return a // b, a % b


@kernel
def total(values: np.ndarray) -> int:  # type: ignore[type-arg]
    sum_of = 0
    for value in values:
        sum_of += value
    return sum_of


@kernel
def forget(a: int) -> None:
    a += 1


def test_arguments_by_place_by_name_and_by_default() -> None:
    assert weigh(1, 2, 100) == 102
    assert weigh(1, 2) == 12
    assert weigh(b=2, a=1) == 12
    assert weigh(1, factor=3, b=4) == 7


def test_too_few_arguments_are_an_error_and_no_address() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        weigh(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        weigh(1, 2, c=3)  # type: ignore[call-arg]


def test_results_are_none_one_or_several_integers() -> None:
    assert forget(1) is None  # type: ignore[func-returns-value]
    assert divide(17, 5) == (3, 2)
    assert weigh(-1, -2) == -12
    assert total(np.arange(5)) == 10
    assert total(np.arange(10)[::2]) == 20
