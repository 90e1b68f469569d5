import itertools
import math

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("numpy")
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backpass.errors import InputError
from backpass.sgs import (
    alpha_beta_scaling,
    k_transform,
    normalize,
    scaling_from_branches,
    scaling_from_dependence,
)
from backpass.sgs.scaling import check_k
from reference import mutual_information as slow

unit = st.floats(0, 1)
strength = st.floats(0.1, 100)


def test_k_transform_by_hand() -> None:
    s = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    assert k_transform(s, 5).tolist() == pytest.approx([0, 1 / 1.8, 2.5 / 3, 1], abs=1e-15)
    assert k_transform(s, 1).tolist() == pytest.approx(s.tolist(), abs=1e-15)
    assert k_transform(s, 0.5).tolist() == pytest.approx([0, 0.1 / 0.9, 0.25 / 0.75, 1], abs=1e-15)


def test_negative_dependence_counts_as_none_and_nan_stays() -> None:
    g = k_transform(torch.tensor([-0.7, math.nan]), 5)
    assert g[0] == 0
    assert g[1].isnan()


@given(unit, unit, strength)
def test_k_transform_is_monotone_in_s_and_stays_in_the_unit_interval(a: float, b: float, k: float) -> None:
    low, high = k_transform(torch.tensor([min(a, b), max(a, b)], dtype=torch.float64), k).tolist()
    assert 0 <= low <= high <= 1 + 1e-15


@given(st.floats(0.01, 0.99), strength, strength)
def test_a_larger_k_lifts_every_dependence(s: float, a: float, b: float) -> None:
    low, high = (k_transform(torch.tensor(s, dtype=torch.float64), k).item() for k in sorted((a, b)))
    assert low <= high + 1e-15


@pytest.mark.parametrize("k", [0, -1, math.nan, math.inf, "5", None, True])
def test_k_out_of_range(k: object) -> None:
    with pytest.raises(InputError, match=rf"expected k to be a finite number > 0, got {k!r}; choose another value$"):
        check_k(k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"got {k!r}"):
        k_transform(torch.ones(1), k)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(st.lists(unit, min_size=2, max_size=9).filter(lambda g: max(g) > 1e-30))
def test_normalize_has_mean_one_is_positive_and_keeps_order(values: list[float]) -> None:
    g = torch.tensor(values, dtype=torch.float64)
    scaling = normalize(g)
    assert scaling.mean().item() == pytest.approx(1, abs=1e-12)
    assert bool((scaling > 0).all())
    order = g.argsort()
    assert bool((scaling[order].diff() >= 0).all())


def test_k_may_be_a_number_of_numpy() -> None:
    assert [check_k(k) for k in np.arange(2, 4)] == [2.0, 3.0]
    assert type(check_k(np.float32(5))) is float


def test_normalize_by_hand() -> None:
    assert normalize(torch.tensor([[1.0, 3.0], [3.0, 1.0]])).tolist() == [[0.5, 1.5], [1.5, 0.5]]


@pytest.mark.parametrize("g", [[0.0, 0.0], [1.0, -0.5], [1.0, math.nan], [math.inf, 1.0]])
def test_normalize_refuses_what_has_no_mean_one_form(g: list[float]) -> None:
    with pytest.raises(InputError, match=r"finite, non-negative scaling that is not all zero, got \[.*\]") as error:
        normalize(torch.tensor(g))
    assert str(g) in str(error.value)


def test_scaling_averages_channels_after_the_transform_and_skips_undefined_ones() -> None:
    s = torch.tensor([[0.5, 1.0], [math.nan, 1.0], [0.2, 1.0]], dtype=torch.float64)
    edge = (2.5 / 3 + 1 / 1.8) / 2
    expected = [2 * edge / (edge + 1), 2 / (edge + 1)]
    g = scaling_from_dependence(s, 5)
    assert g.dtype == torch.float32
    assert g.tolist() == pytest.approx(expected, abs=1e-6)


def test_scaling_equals_the_loops() -> None:
    s = torch.rand(7, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s[2, 0, 0] = math.nan
    np.testing.assert_allclose(scaling_from_dependence(s, 3).numpy(), slow.scaling(s.numpy(), 3), rtol=0, atol=1e-6)


def test_no_channel_defined_gives_ones() -> None:
    s = torch.full((4, 3, 3), math.nan, dtype=torch.float64)
    s[:, 1, 1] = 1
    assert torch.equal(scaling_from_dependence(s, 5), torch.ones(3, 3))


def test_taps_without_any_dependence_stay_strictly_positive() -> None:
    s = torch.zeros(2, 3, 3, dtype=torch.float64)
    s[:, 1, 1] = 1
    g = scaling_from_dependence(s, 5)
    assert bool((g > 0).all())
    assert g[1, 1].item() == pytest.approx(9, abs=1e-3)


def test_branches_by_hand() -> None:
    assert scaling_from_branches(["3x3", "1x3", "3x1"]).tolist() == [[1, 2, 1], [2, 3, 2], [1, 2, 1]]
    assert scaling_from_branches(["3", "1", "1"]).tolist() == [1, 3, 1]
    assert scaling_from_branches(["3x3", "1x1"]).tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]
    assert scaling_from_branches(["1x1x3", "1x3x1"]).shape == (1, 3, 3)
    assert scaling_from_branches(["1x1"], kernel_size=(1, 3)).tolist() == [[0, 1, 0]]
    assert scaling_from_branches(["2", "4"]).tolist() == [1, 2, 2, 1]


def test_branches_normalize_to_the_acb_scaling() -> None:
    expected = torch.tensor([[0.6, 1.2, 0.6], [1.2, 1.8, 1.2], [0.6, 1.2, 0.6]])
    torch.testing.assert_close(normalize(scaling_from_branches(["3x3", "3x1", "1x3"])), expected)


@pytest.mark.parametrize(
    ("branches", "kernel_size", "message"),
    [
        ([], None, r"same number of axes, such as .* got \[\]"),
        (["3x3", "3"], None, r"same number of axes, .* got \['3x3', '3'\]"),
        (["3x"], None, "such as '3x3' or '1x3', got '3x'"),
        (["0x3"], None, "got '0x3'"),
        (["-1x3"], None, "got '-1x3'"),
        (["2x3", "3x3"], None, r"branch '2x3' cannot be centred in a kernel of size \(3, 3\)"),
        (["5x5"], (3, 3), r"branch '5x5' cannot be centred in a kernel of size \(3, 3\)"),
        (["3"], (3, 3), r"branch '3' cannot be centred in a kernel of size \(3, 3\)"),
    ],
)
def test_branches_that_do_not_fit(branches: list[str], kernel_size: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scaling_from_branches(branches, kernel_size)


def test_alpha_beta_by_hand() -> None:
    assert torch.equal(alpha_beta_scaling(1, 1), torch.ones(3, 3))
    assert (alpha_beta_scaling(2, 4) * 4 / 9).tolist() == [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]
    corner, edge, centre = 0.41, 0.82, 4.09  # rounded
    expected = torch.tensor([[corner, edge, corner], [edge, centre, edge], [corner, edge, corner]])
    torch.testing.assert_close(alpha_beta_scaling(5, 10), expected, rtol=0, atol=0.005)


@pytest.mark.parametrize(("alpha", "beta"), [*itertools.product((0.8, 1, 1.25, 1.7, 5, 10, 100, 1e7), repeat=2)])
def test_alpha_beta_equals_the_printed_formula(alpha: float, beta: float) -> None:
    rows = [[1 / beta, 1 / alpha, 1 / beta], [1 / alpha, 1, 1 / alpha], [1 / beta, 1 / alpha, 1 / beta]]
    expected = torch.tensor(rows) * 9 / (1 + 4 / alpha + 4 / beta)
    torch.testing.assert_close(alpha_beta_scaling(alpha, beta), expected)


@pytest.mark.parametrize(
    ("alpha", "beta", "named"),
    [(0, 1, "alpha"), (1, -1, "beta"), (math.nan, 1, "alpha"), (1, math.inf, "beta"), ("1", 2, "alpha")],
)
def test_alpha_beta_out_of_range(alpha: float, beta: float, named: str) -> None:
    with pytest.raises(InputError, match=f"expected {named} to be a finite number > 0, got"):
        alpha_beta_scaling(alpha, beta)
