import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("numpy")
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backpass.sgs import fast_counting, histogram
from reference import mutual_information as slow


def ranges(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    return x.amin(axes), x.amax(axes)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_offsets_of_even_kernels_start_at_the_lower_centre() -> None:
    assert histogram.tap_offsets((2,)) == [(0,), (1,)]
    assert histogram.tap_offsets((4,)) == [(-1,), (0,), (1,), (2,)]
    assert histogram.half_offsets((4,)) == [(1,), (2,)]
    assert histogram.half_offsets((1,)) == []


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
def test_half_offsets_reach_every_tap_up_to_sign(kernel_size: tuple[int, ...]) -> None:
    half = set(histogram.half_offsets(kernel_size))
    taps = {offset for _, offset in slow.tap_displacements(kernel_size, [1] * len(kernel_size))}
    assert set(histogram.tap_offsets(kernel_size)) == taps
    for tap in taps:
        negative = tuple(-o for o in tap)
        assert ((tap in half) + (negative in half)) == (1 if any(tap) else 0)


@given(st.integers(1, 10**7))
def test_number_of_bins_is_sturges(pairs: int) -> None:
    assert histogram.number_of_bins(pairs) == slow.sturges(pairs)


@pytest.mark.parametrize("displacement", [(0, 1), (1, -1), (-2, 3), (0, -4)])
def test_pixel_pairs_are_displaced_views(displacement: tuple[int, int]) -> None:
    x = torch.arange(2 * 1 * 5 * 6.0).view(2, 1, 5, 6)
    first, second = histogram.pixel_pairs(x, displacement)
    assert sorted(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)) == sorted(
        slow.pixel_pairs([x.numpy()], 0, displacement)
    )
    assert first.numel() == histogram.number_of_pairs(x.shape, displacement)
    assert first.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_no_pairs_where_the_displacement_leaves_the_map() -> None:
    x = noise(2, 1, 3, 3)
    assert histogram.number_of_pairs(x.shape, (3, 0)) == 0
    assert all(side.numel() == 0 for side in histogram.pixel_pairs(x, (4, -1)))


def test_bins_by_hand() -> None:
    x = torch.tensor([0.0, 0.99, 1.0, 3.99, 4.0]).view(1, 1, 5)
    low, high = ranges(x)
    assert histogram.bin_indices(x, low, high, 4).flatten().tolist() == [0, 0, 1, 3, 3]


def test_bins_of_each_channel_by_hand() -> None:
    """Channels with bins of their own; what lies outside the range falls into the first and the last bin."""
    x = torch.tensor([[0.0, 1.0, 2.0, 4.0], [-3.0, 0.0, 1.9, 9.0]]).view(1, 2, 4)
    low, high = torch.tensor([0.0, 0.0]), torch.tensor([4.0, 2.0])
    assert histogram.bin_indices(x, low, high, torch.tensor([4, 2])).tolist() == [[[0, 1, 2, 3], [0, 0, 1, 1]]]


def test_a_constant_channel_falls_into_bin_zero() -> None:
    x = torch.full((1, 1, 4), 7.5)
    assert histogram.bin_indices(x, *ranges(x), 9).flatten().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bins", [15, 17, 20])
def test_eight_bit_values_on_bin_edges_are_binned_in_float64(bins: int) -> None:
    """Grey levels of normalised images lie on bin edges, from where float32 rounding moves a few."""
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    x = (torch.arange(256).float() / 255 - mean.view(1, 3, 1)) / std.view(1, 3, 1)
    low, high = ranges(x)
    ours = histogram.bin_indices(x, low, high, bins)
    for c in range(3):
        expected = [slow.bin_of(v, float(low[c]), float(high[c]), bins) for v in x[0, c].tolist()]
        assert ours[0, c].tolist() == expected
    in_float32 = (x - low.view(1, 3, 1)).mul(bins / (high - low).view(1, 3, 1)).to(torch.int16).clamp(0, bins - 1)
    assert not torch.equal(ours, in_float32)


def test_joint_histogram_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]).view(1, 1, 5)
    (joint,) = fast_counting.joint_histograms(x, [(1,)], *ranges(x), [2])
    assert joint.tolist() == [[[1, 2], [1, 0]]]


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(3, 6), st.integers(3, 6)),
    displacement=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    bins=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_joint_histogram_equals_the_loops(
    shape: tuple[int, ...], displacement: tuple[int, int], bins: int, seed: int
) -> None:
    x = noise(*shape, seed=seed).relu()
    low, high = ranges(x)
    (joint,) = fast_counting.joint_histograms(x, [displacement], low, high, [bins])
    for c in range(shape[1]):
        pairs = slow.pixel_pairs([x.numpy()], c, displacement)
        edges = (float(low[c]), float(high[c]))
        expected = slow.joint_histogram(pairs, edges, edges, bins)
        np.testing.assert_array_equal(joint[c].numpy(), expected)


def test_joint_histogram_equals_numpy_histogramdd() -> None:
    x = noise(4, 2, 9, 9)
    low, high = ranges(x)
    (joint,) = fast_counting.joint_histograms(x, [(1, -1)], low, high, [10])
    for c in range(2):
        p, q = (side[:, c].flatten().double().numpy() for side in histogram.pixel_pairs(x, (1, -1)))
        edges = (float(low[c]), float(high[c]))
        expected, _ = np.histogramdd((p, q), bins=10, range=[edges, edges])
        np.testing.assert_array_equal(joint[c].numpy(), expected)


@pytest.mark.parametrize("elements", [1, 40, 1000])
def test_slicing_changes_no_count(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    x = noise(7, 5, 6, 6)
    call = (x, [(0, 1), (1, 0), (1, 1)], *ranges(x), [9, 9, 8])
    whole = fast_counting.joint_histograms(*call)
    monkeypatch.setattr(fast_counting, "_ELEMENTS_AT_ONCE", elements)
    monkeypatch.setattr(fast_counting, "_INT16_MAX", 100)
    for joint, part in zip(whole, fast_counting.joint_histograms(*call), strict=True):
        assert torch.equal(joint, part)
    assert [int(joint.sum()) for joint in whole] == [
        5 * histogram.number_of_pairs(x.shape, d) for d in [(0, 1), (1, 0), (1, 1)]
    ]


def test_many_channels_fit_int16_cell_numbers() -> None:
    x = noise(1, 300, 4, 4)
    low, high = ranges(x)
    (joint,) = fast_counting.joint_histograms(x, [(0, 1)], low, high, [25])
    (last,) = fast_counting.joint_histograms(x[:, 299:], [(0, 1)], low[299:], high[299:], [25])
    assert torch.equal(joint[299:], last)


@pytest.mark.parametrize("shape", [(3, 4, 6, 6), (4, 3, 30, 30)], ids=["one lane", "three lanes"])
@pytest.mark.parametrize("zeros", [None, [(1, 1), (1, 2)], [(1, 1), (0, 1)]], ids=["none", "all around", "in part"])
def test_zeros_memory_format_and_lanes_change_no_count(
    shape: tuple[int, ...], zeros: list[tuple[int, int]] | None
) -> None:
    x = noise(*shape).relu()
    padded = x if zeros is None else F.pad(x, [*zeros[1], *zeros[0]])
    low, high = ranges(padded)
    displacements = [(0, 1), (1, -1), (1, 0)]
    for bins in ([7, 7, 7], [7, 8, 7]):
        want = []
        for displacement, b in zip(displacements, bins, strict=True):
            edges = [np.arange(b + 1)] * 2
            per_channel = []
            for c in range(shape[1]):
                index = histogram.bin_indices(padded[:, [c]], low[[c]], high[[c]], b)
                p, q = (v.flatten().numpy() for v in histogram.pixel_pairs(index, displacement))
                per_channel.append(torch.tensor(np.histogram2d(p, q, edges)[0]).long())
            want.append(torch.stack(per_channel))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            got = fast_counting.joint_histograms(
                x.contiguous(memory_format=memory_format),
                displacements,
                low,
                high,
                bins,
                zeros=zeros,
            )
            for ours, reference in zip(got, want, strict=True):
                assert torch.equal(ours, reference)
