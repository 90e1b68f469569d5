from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("numpy")
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backpass.sgs import measure_scalings, mutual_information, scaling_from_dependence
from backpass.sgs.near_equal import MutualInformationWithoutNearEqual
from reference import mutual_information as slow

GOLDEN = np.load(Path(__file__).parents[1] / "reference" / "golden_sgs_near_equal.npz")


def relu_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu()


def golden(case: int) -> tuple[Tensor, nn.Conv2d, float, np.ndarray]:
    kh, kw, ph, pw, k = GOLDEN[f"meta{case}"].tolist()
    x = torch.from_numpy(GOLDEN[f"x{case}"])
    return x, nn.Conv2d(x.shape[1], 1, (int(kh), int(kw)), padding=(int(ph), int(pw))), k, GOLDEN[f"G{case}"]


@pytest.mark.parametrize("case", range(5))
def test_equals_the_published_estimator(case: int) -> None:
    x, conv, k, expected = golden(case)
    s = mutual_information(x, conv.kernel_size, padding=conv.padding, drop_near_equal=True)
    g = scaling_from_dependence(s, k, undefined_as_zero=True)
    np.testing.assert_allclose(g.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("batch", [8, 3, 1])
def test_update_in_batches_equals_the_published_estimator(case: int, batch: int) -> None:
    x, conv, k, expected = golden(case)
    g = measure_scalings(conv, x.split(batch), k=k, drop_near_equal=True).scalings["weight"]
    np.testing.assert_allclose(g.numpy(), expected, rtol=0, atol=1e-6)


def test_the_comparison_with_the_published_estimator_can_fail() -> None:
    """Counting undefined channels otherwise, or the pairs of the plain estimator, is another scaling."""
    x, _, k, expected = golden(1)
    s = mutual_information(x, (3, 3), padding=1, drop_near_equal=True)
    plain = mutual_information(x, (3, 3), padding=1)
    assert np.abs(scaling_from_dependence(s, k).numpy() - expected).max() > 1e-2
    assert np.abs(scaling_from_dependence(plain, k, undefined_as_zero=True).numpy() - expected).max() > 1e-2


def counted(x: Tensor, kernel_size: tuple[int, ...] = (2,)) -> MutualInformationWithoutNearEqual:
    dependence = MutualInformationWithoutNearEqual(kernel_size, x.shape[1])
    dependence.observe(x, (1,) * len(kernel_size))
    dependence.start_counting()
    dependence.count(x, (1,) * len(kernel_size))
    return dependence


def test_the_rule_by_hand() -> None:
    """Of (0, 2), (2, 4), (4, 4), (4, 1), (1, 0), those without a zero are (2, 4), (4, 4), (4, 1).

    n = 3, so 3 bins: of pixels from 2 to 4, of neighbours from 1 to 4. (2, 4) is in (0, 2), (4, 4) in (2, 2) and
    (4, 1) in (2, 0); the one on the diagonal is removed.
    """
    dependence = counted(torch.tensor([0.0, 2.0, 4.0, 4.0, 1.0, 0.0]).view(1, 1, 6))
    assert dependence.pairs.tolist() == [5]
    assert dependence.kept.tolist() == [[3]]
    assert dependence.pair_low.tolist() == [[[2.0], [1.0]]]
    assert dependence.pair_high.tolist() == [[[4.0], [4.0]]]
    assert dependence.totals[0].tolist() == [[[0, 0, 1], [0, 0, 0], [1, 0, 0]]]


def test_zeros_around_the_map_change_nothing() -> None:
    x = relu_noise(3, 2, 6, 6)
    padded = mutual_information(x, (3, 3), padding=1, drop_near_equal=True)
    assert torch.equal(padded, mutual_information(x, (3, 3), drop_near_equal=True))


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    kernel_size=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 10**6),
)
def test_equals_the_loops(
    shape: tuple[int, ...], kernel_size: tuple[int, int], dilation: tuple[int, int], seed: int
) -> None:
    x = relu_noise(*shape, seed=seed)
    ours = mutual_information(x, kernel_size, dilation=dilation, drop_near_equal=True)
    expected = slow.dependence([x.double().numpy()], kernel_size, dilation, drop_near_equal=True)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


def test_bins_and_ranges_belong_to_channel_and_displacement() -> None:
    """Each channel is measured as if it were alone, whatever its number of pairs and its values."""
    x = relu_noise(4, 3, 8, 8)
    x[:, 1] *= torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.4
    x[:, 2] *= 100
    s = mutual_information(x, (3, 3), drop_near_equal=True)
    for c in range(3):
        alone = mutual_information(x[:, [c]], (3, 3), drop_near_equal=True)
        torch.testing.assert_close(s[[c]], alone, rtol=1e-12, atol=1e-12)
    dependence = counted(x, (3, 3))
    assert len({tuple(bins) for bins in dependence.pair_bins.tolist()}) > 1
    assert len(set(dependence.pair_bins[0].tolist())) > 1


def test_slices_change_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    x = relu_noise(5, 7, 6, 6)
    whole = counted(x, (3, 3))
    monkeypatch.setattr("backpass.sgs.fast_counting._ELEMENTS_AT_ONCE", 40)
    parts = counted(x, (3, 3))
    assert torch.equal(whole.kept, parts.kept)
    assert all(torch.equal(a, b) for a, b in zip(whole.totals, parts.totals, strict=True))


def test_a_dead_channel_counts_as_zero_and_a_dead_layer_gets_ones() -> None:
    x = relu_noise(4, 3, 8, 8)
    x[:, 1] = 0
    s = mutual_information(x, (3, 3), drop_near_equal=True)
    assert s[1].isnan().sum() == 8
    conv = nn.Conv2d(3, 1, 3)
    dead = measure_scalings(conv, [x], drop_near_equal=True).scalings["weight"]
    alive = measure_scalings(nn.Conv2d(2, 1, 3), [x[:, [0, 2]]], drop_near_equal=True).scalings["weight"]
    assert dead[1, 1] > alive[1, 1]
    ones = measure_scalings(conv, [torch.zeros(4, 3, 8, 8)], drop_near_equal=True)
    assert torch.equal(ones.scalings["weight"], torch.ones(3, 3))
    assert ones.unreached == ones.not_finite == ()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_reported_also_beside_zeros_only(bad: float) -> None:
    x = relu_noise(2, 2, 6, 6)
    x[0, 0, :3, :3] = 0
    x[0, 0, 1, 1] = bad
    assert measure_scalings(nn.Conv2d(2, 1, 3), [x], drop_near_equal=True).not_finite == ("weight",)


def test_a_tap_beyond_the_map_counts_as_zero() -> None:
    x = relu_noise(8, 2, 8, 1)
    g = measure_scalings(nn.Conv2d(2, 1, 3, padding=1), [x], drop_near_equal=True).scalings["weight"]
    assert bool((g[:, [0, 2]] < 1e-4).all())
    assert bool((g[[0, 2], 1] > 0.1).all())
