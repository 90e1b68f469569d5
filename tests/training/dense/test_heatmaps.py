import math

import pytest
import torch

from backpass.errors import InputError
from backpass.training.dense.heatmaps import (
    average_with_flipped,
    decode_heatmaps,
    draw_heatmaps,
    heatmap_loss,
    mirror_heatmaps,
)

PAIRS = ((0, 2),)


def slow_map(joint, size, sigma, rounding):
    u, v = (math.trunc(value + (0.5 if rounding == "nearest" else 0)) for value in joint)
    heatmap = torch.zeros(size, dtype=torch.float64)
    for y in range(size[0]):
        for x in range(size[1]):
            if abs(x - u) <= 3 * sigma and abs(y - v) <= 3 * sigma:
                heatmap[y, x] = math.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
    return heatmap


@pytest.mark.parametrize("rounding", ["down", "nearest"])
@pytest.mark.parametrize("joint", [(10.2, 7.7), (0.0, 18.9), (24.5, -3.0), (-5.7, 3.5), (29.4, 25.0)])
def test_target_equals_a_slow_one(joint, rounding):
    joints = torch.tensor([[joint]], dtype=torch.float64)
    drawn = draw_heatmaps(joints, torch.tensor([[True]]), (20, 24), sigma=2.0, rounding=rounding)
    torch.testing.assert_close(drawn[0, 0], slow_map(joint, (20, 24), 2.0, rounding), rtol=1e-12, atol=0)
    assert drawn.any()


def test_joints_that_are_hidden_or_far_outside_have_empty_maps():
    joints = torch.tensor([[[5.0, 5.0], [5.0, 5.0], [5.0, 40.0], [-8.0, 5.0]]])
    maps = draw_heatmaps(joints, torch.tensor([[True, False, True, True]]), (16, 16))
    assert maps.flatten(2).any(-1).tolist() == [[True, False, False, False]]


def test_loss_with_and_without_weights():
    output, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    visible = torch.tensor([[True, False, True], [False, False, True]])
    errors = (output - target) ** 2
    torch.testing.assert_close(heatmap_loss(output, target), errors.sum() / 120)
    seen = errors[0, 0].sum() + errors[0, 2].sum() + errors[1, 2].sum()
    torch.testing.assert_close(heatmap_loss(output, target, visible), seen / 120)


def test_shapes_of_the_loss():
    with pytest.raises(InputError, match=r"got \(2, 3, 4, 5\), \(2, 3, 8, 5\) and None"):
        heatmap_loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 8, 5))
    with pytest.raises(InputError, match=r"\(2, 1\)"):
        heatmap_loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5), torch.ones(2, 1))


def test_mirrored_maps_swap_left_and_right():
    maps = torch.randn(2, 3, 4, 5)
    mirrored = mirror_heatmaps(maps, PAIRS)
    for joint, other in enumerate((2, 1, 0)):
        for x in range(5):
            assert torch.equal(mirrored[:, joint, :, x], maps[:, other, :, 4 - x])


def test_average_with_the_mirrored_copy():
    maps, of_mirrored = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    back = mirror_heatmaps(of_mirrored, PAIRS)
    torch.testing.assert_close(average_with_flipped(maps, of_mirrored, PAIRS), (maps + back) / 2)
    shifted = average_with_flipped(maps, of_mirrored, PAIRS, shift=True)
    torch.testing.assert_close(shifted[..., 1:], (maps[..., 1:] + back[..., :-1]) / 2)
    torch.testing.assert_close(shifted[..., 0], (maps[..., 0] + back[..., 0]) / 2)


def slow_decode(heatmap):
    """Follow the published rule for one map: the arg-max, moved by a quarter of a pixel away from the borders."""
    height, width = heatmap.shape
    if heatmap.max() <= 0:
        return 0.0, 0.0
    place = max(range(height * width), key=lambda i: heatmap[i // width, i % width].item())
    x, y = place % width, place // width
    if not (1 < x < width - 1 and 1 < y < height - 1):
        return float(x), float(y)
    dx = (heatmap[y, x + 1] - heatmap[y, x - 1]).item()
    dy = (heatmap[y + 1, x] - heatmap[y - 1, x]).item()
    return x + 0.25 * ((dx > 0) - (dx < 0)), y + 0.25 * ((dy > 0) - (dy < 0))


def test_decoding_equals_a_slow_one():
    maps = torch.randint(-3, 6, (8, 25, 6, 5)).float()  # ties, and peaks at every border
    maps[0, 0] = -1
    quarter, whole = decode_heatmaps(maps, quarter_pixel=True), decode_heatmaps(maps)
    fractions = 0
    for n in range(8):
        for joint in range(25):
            expected = slow_decode(maps[n, joint])
            assert tuple(quarter[n, joint].tolist()) == expected
            assert (whole[n, joint] - quarter[n, joint]).abs().max() <= 0.25
            fractions += expected != tuple(whole[n, joint].tolist())
    assert fractions > 5


def test_what_is_drawn_is_decoded():
    joints = torch.randint(0, 32, (4, 6, 2)).float()
    maps = draw_heatmaps(joints, torch.ones(4, 6, dtype=torch.bool), (32, 32))
    assert torch.equal(decode_heatmaps(maps), joints)
