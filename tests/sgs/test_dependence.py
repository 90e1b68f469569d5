import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")
import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import normalized_mutual_information as skimage_nmi
from sklearn.metrics import mutual_info_score
from torch import Tensor

from backpass.errors import InputError
from backpass.sgs import autocorrelation, mutual_information, scaling_from_dependence
from backpass.sgs.dependence import Dependence, correlation_of_moments, entropy, normalized_mutual_information
from backpass.sgs.fast_counting import joint_histograms
from backpass.sgs.histogram import bin_indices, number_of_bins, number_of_pairs, pixel_pairs
from backpass.sgs.measuring import MEASURES
from backpass.sgs.near_equal import MutualInformationWithoutNearEqual
from reference import mutual_information as slow

GOLDEN = np.load(Path(__file__).parents[1] / "reference" / "golden_sgs.npz")


def smooth(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="circular"), 3, stride=1)


@pytest.mark.parametrize("displacement", [(0, 1), (1, -1), (1, 0), (2, 1)])
@pytest.mark.parametrize("activation", [torch.clone, torch.relu], ids=["signed", "relu"])
def test_equals_scikit_image(displacement: tuple[int, int], activation: object) -> None:
    x = F.pad(activation(smooth(4, 3, 12, 12)), (1, 1, 1, 1))  # type: ignore[operator]
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    bins = number_of_bins(number_of_pairs(x.shape, displacement))
    (joint,) = joint_histograms(x, [displacement], low, high, [bins])
    ours = normalized_mutual_information(joint)
    for c in range(3):
        p, q = (side[:, c].flatten().double().numpy() for side in pixel_pairs(x, displacement))
        assert {p.min(), q.min(), p.max(), q.max()} == {float(low[c]), float(high[c])}  # so that its bins are ours
        assert float(ours[c]) == pytest.approx(skimage_nmi(p, q, bins=bins) - 1, abs=1e-9)


def test_equals_scikit_learn() -> None:
    x = smooth(4, 3, 12, 12)
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    bins = number_of_bins(number_of_pairs(x.shape, (1, 1)))
    labels = bin_indices(x, low, high, bins)
    (joint,) = joint_histograms(x, [(1, 1)], low, high, [bins])
    h_joint = entropy(joint.flatten(1))
    shared = normalized_mutual_information(joint) * h_joint
    for c in range(3):
        p, q = (side[:, c].flatten().numpy() for side in pixel_pairs(labels, (1, 1)))
        assert float(shared[c]) == pytest.approx(mutual_info_score(p, q), abs=1e-9)


@pytest.mark.parametrize("case", range(5))
def test_equals_the_published_estimator(case: int) -> None:
    kh, kw, ph, pw, k = GOLDEN[f"meta{case}"].tolist()
    s = mutual_information(torch.from_numpy(GOLDEN[f"x{case}"]), (int(kh), int(kw)), padding=(int(ph), int(pw)))
    g = scaling_from_dependence(s, k)
    np.testing.assert_allclose(g.numpy(), GOLDEN[f"G{case}"], rtol=0, atol=1e-6)


def test_the_comparison_with_the_published_estimator_can_fail() -> None:
    x, expected = torch.from_numpy(GOLDEN["x0"]), GOLDEN["G0"]
    unpadded = scaling_from_dependence(mutual_information(x, (3, 3)), 5)
    wrong_k = scaling_from_dependence(mutual_information(x, (3, 3), padding=1), 4)
    assert np.abs(unpadded.numpy() - expected).max() > 1e-3
    assert np.abs(wrong_k.numpy() - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("kernel_size", "padding", "dilation"),
    [((3, 3), 1, 1), ((3, 5), (0, 2), (2, 1)), ((2, 4), (1, 0), (1, 2)), ((1, 3), 0, 3)],
)
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("activation", [torch.relu, lambda x: x.sigmoid() + 0.2, lambda x: -x.sigmoid() - 0.2])
def test_mutual_information_equals_the_loops(
    kernel_size: tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    activation: Callable[[Tensor], Tensor],
    drop: bool,
) -> None:
    x = activation(smooth(2, 2, 9, 10))  # the zeros around a map of one sign widen its range
    ours = mutual_information(x, kernel_size, padding=padding, dilation=dilation, drop_near_equal=drop)
    ph, pw = (padding, padding) if isinstance(padding, int) else padding
    steps = (dilation, dilation) if isinstance(dilation, int) else dilation
    maps = [slow.padded(x.double().numpy(), [(ph, ph), (pw, pw)])]
    expected = slow.dependence(maps, kernel_size, steps, drop_near_equal=drop)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


def test_drop_near_equal_changes_the_result() -> None:
    x = smooth(2, 2, 9, 10).relu()
    assert not torch.allclose(mutual_information(x, (3, 3)), mutual_information(x, (3, 3), drop_near_equal=True))


@pytest.mark.parametrize(("kernel_size", "padding", "dilation"), [((3, 3), 1, 1), ((2, 4), 0, 2)])
def test_autocorrelation_equals_the_loops(kernel_size: tuple[int, int], padding: int, dilation: int) -> None:
    x = smooth(2, 2, 9, 10) + 1e4  # far from zero, where plain sums of squares cancel
    ours = autocorrelation(x, kernel_size, padding=padding, dilation=dilation)
    maps = [slow.padded(x.double().numpy(), [(padding, padding)] * 2)]
    expected = slow.dependence(maps, kernel_size, (dilation, dilation), measure="autocorrelation")
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-10)


def test_autocorrelation_equals_numpy() -> None:
    x = smooth(3, 1, 8, 8)
    p, q = (side.flatten().double().numpy() for side in pixel_pairs(x, (1, -1)))
    assert float(autocorrelation(x, (3, 3))[0, 2, 0]) == pytest.approx(np.corrcoef(p, q)[0, 1], abs=1e-12)


@pytest.mark.parametrize("measure", [mutual_information, autocorrelation])
def test_opposite_taps_share_a_value_and_the_centre_is_one(measure: object) -> None:
    s: Tensor = measure(smooth(2, 3, 8, 8), (5, 3), padding=(2, 1))  # type: ignore[operator]
    assert torch.equal(s, s.flip(1, 2))
    assert torch.equal(s[:, 2, 1], torch.ones(3, dtype=torch.float64))
    assert s.dtype == torch.float64


@pytest.mark.parametrize("measure", [mutual_information, autocorrelation])
def test_channels_are_measured_apart(measure: object) -> None:
    x = smooth(2, 3, 8, 8)
    s: Tensor = measure(x, (3, 3))  # type: ignore[operator]
    assert torch.equal(measure(x[:, [2, 0]], (3, 3)), s[[2, 0]])  # type: ignore[operator]


def test_affine_maps_leave_mutual_information_alone() -> None:
    """Scaling by a power of two is exact in floating point, so the counts are the same."""
    x = smooth(2, 2, 8, 8)
    assert torch.equal(mutual_information(x * 4, (3, 3)), mutual_information(x, (3, 3)))


def test_smooth_maps_share_more_than_noise_and_near_taps_more_than_far() -> None:
    noise = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    s = mutual_information(smooth(8, 2, 16, 16, seed=1), (1, 5)).mean(0)[0]
    assert s[3] > 3 * mutual_information(noise, (1, 3)).mean(0)[0, 2]
    assert s[3] > s[4] > 0


def test_constant_channels_are_undefined_and_only_they() -> None:
    x = smooth(2, 3, 8, 8)
    x[:, 1] = 0.1
    for s in (mutual_information(x, (3, 3)), autocorrelation(x, (3, 3))):
        undefined = s.isnan()
        undefined[:, 1, 1] = False  # the centre is 1 by definition
        assert undefined.flatten(1).any(1).tolist() == [False, True, False]
        assert int(undefined[1].sum()) == 8


@pytest.mark.parametrize("height", range(3, 30))
def test_correlation_with_a_constant_side_is_undefined_in_spite_of_rounding(height: int) -> None:
    """The left column varies, the right one is 0.1: the sums of its squares round, yet it does not vary."""
    x = torch.full((1, 1, height, 2), 0.1)
    x[..., 0] = torch.linspace(-3, 5, height)
    assert autocorrelation(x, (1, 3))[0, 0].isnan().tolist() == [True, False, True]


def test_entropy_by_hand() -> None:
    h = entropy(torch.tensor([[4, 0, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    assert h.tolist() == pytest.approx([0.0, math.log(2), math.log(4), 0.0], abs=1e-15)


def test_normalized_mutual_information_by_hand() -> None:
    joint = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [1, 1]], [[4, 0], [0, 0]], [[0, 0], [0, 0]]])
    s = normalized_mutual_information(joint)
    assert s[:2].tolist() == pytest.approx([1.0, 0.0], abs=1e-15)
    assert s[2:].isnan().all()


def test_correlation_of_moments_by_hand() -> None:
    """(0, 1), (1, 0): sums 1, 1, 1, 1, 0 and correlation -1; no pairs at all: undefined."""
    assert correlation_of_moments(2, torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64).view(5, 1)).item() == -1
    assert correlation_of_moments(0, torch.zeros(5, 1, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_any_split_of_the_maps_gives_the_same_totals(measure: str) -> None:
    x = smooth(12, 3, 8, 8)
    splits = [[12], [1] * 12, [5, 4, 3], [3, 9]]
    totals = []
    for split in splits:
        dependence = MEASURES[measure]((3, 3), 3)
        for part in x.split(split):
            dependence.observe(part, (1, 1))
        dependence.start_counting()
        for part in x.split(split):
            dependence.count(part, (1, 1))
        totals.append(dependence.totals)
        assert dependence.pairs.tolist() == [12 * 8 * 7, 12 * 7 * 7, 12 * 7 * 8, 12 * 7 * 7]
    for other in totals[1:]:
        for a, b in zip(other, totals[0], strict=True):
            if measure == "mutual_information":
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [*MEASURES.values(), MutualInformationWithoutNearEqual])
def test_a_device_without_float64_is_measured_on_the_cpu_and_in_float32(kind: type[Dependence]) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        dependence = kind((3, 3), 2, device=torch.device("mps"))
    finally:
        torch.set_default_dtype(default)
    assert (dependence.low.device.type, dependence.pairs.device.type) == ("cpu", "cpu")
    assert {t.dtype for t in (*dependence.minima, *dependence.maxima)} == {torch.float32}
    assert {t.device.type for t in (*dependence.minima, *dependence.maxima, *dependence.sums)} == {"cpu"}


def test_half_precision_maps_are_measured_in_float32() -> None:
    x = smooth(2, 2, 8, 8).bfloat16()
    assert torch.equal(mutual_information(x, (3, 3)), mutual_information(x.float(), (3, 3)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 8), r"2 spatial axes for kernel size \(3, 3\), got shape \(2, 3, 8\) of torch.float32"),
        (torch.zeros(0, 3, 8, 8), r"non-empty .* got shape \(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), r"got shape \(2, 3, 8, 8\) of torch.int64"),
        (torch.full((1, 1, 4, 4), torch.nan), "expected finite values in the feature map, got NaN or infinity"),
        (torch.full((1, 1, 4, 4), torch.inf), "expected finite values in the feature map, got NaN or infinity"),
    ],
)
def test_maps_that_cannot_be_measured(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mutual_information(x, (3, 3))


def test_padding_and_dilation_fit_the_axes() -> None:
    x = smooth(1, 1, 8, 8)
    with pytest.raises(InputError, match=r"expected padding to be one number or 2, .* got \(1,\)"):
        mutual_information(x, (3, 3), padding=(1,))
    with pytest.raises(InputError, match=r"expected dilation to be one number or 2, .* got \(1, 2, 3\)"):
        autocorrelation(x, (3, 3), dilation=(1, 2, 3))


def test_nothing_warns_on_degenerate_maps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mutual_information(torch.zeros(1, 1, 1, 1), (3, 3)).isnan().sum() == 8


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kernel_size": 3}, "kernel_size to be integers >= 1, one for each spatial axis, got 3"),
        ({"kernel_size": (0, 3)}, r"kernel_size to be integers >= 1, .* got \(0, 3\)"),
        ({"dilation": 0}, r"dilation to be integers >= 1, .* got \[0, 0\]"),
        ({"dilation": (1, 1.0)}, r"dilation to be integers >= 1, .* got \(1, 1.0\)"),
        ({"padding": -1}, r"padding to be integers >= 0, .* got \[-1, -1\]"),
    ],
)
def test_sizes_that_no_convolution_has_are_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        mutual_information(torch.randn(2, 1, 8, 8), **({"kernel_size": (1, 3)} | arguments))
