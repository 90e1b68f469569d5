import math

import numpy
import pytest
import torch

from backpass.errors import InputError
from backpass.training.dense.crop_geometry import (
    crop_matrix,
    invert_matrix,
    swap_joints,
    transform_points,
    warp,
)


def published_matrix(center, side, size, angle):
    """Solve for the map through three points: the centre, a point half a side above it, turned, and a third one."""
    turn = math.radians(angle)
    above = numpy.array([side / 2 * math.sin(turn), -side / 2 * math.cos(turn)])
    height, width = size
    source = [numpy.array(center), numpy.array(center) + above]
    target = [numpy.array([width / 2, height / 2]), numpy.array([width / 2, height / 2 - width / 2])]
    for points in (source, target):
        difference = points[0] - points[1]
        points.append(points[1] + numpy.array([-difference[1], difference[0]]))
    rows = numpy.array([[*point, 1] for point in source])
    return torch.tensor(numpy.linalg.solve(rows, numpy.array(target)).T)


@pytest.mark.parametrize("angle", [0.0, 30.0, -47.5])
@pytest.mark.parametrize("size", [(64, 64), (96, 72)])
def test_the_matrix_is_the_published_one(angle, size):
    matrix = crop_matrix((103.5, 61.0), 140.0, size, angle)
    torch.testing.assert_close(matrix, published_matrix((103.5, 61.0), 140.0, size, angle))


def test_mirroring_swaps_the_columns_of_the_crop():
    points = torch.rand(5, 2, dtype=torch.float64) * 100
    straight = transform_points(points, crop_matrix((40, 50), 80, (32, 48), 20))
    mirrored = transform_points(points, crop_matrix((40, 50), 80, (32, 48), 20, mirrored=True))
    torch.testing.assert_close(mirrored[:, 0], 47 - straight[:, 0])
    torch.testing.assert_close(mirrored[:, 1], straight[:, 1])


def test_points_return_through_the_inverse():
    matrices = torch.stack([crop_matrix((40, 50), 80, (64, 64), 20, True), crop_matrix((9, 3), 30, (64, 64))])
    points = torch.rand(2, 7, 2) * 100
    there = transform_points(points, matrices)
    assert there.dtype == torch.float32
    torch.testing.assert_close(transform_points(there, invert_matrix(matrices)), points, atol=1e-4, rtol=1e-5)


def slow_warp(image, matrix, size):
    inverse = numpy.linalg.inv(numpy.vstack([matrix.numpy(), [0, 0, 1]]))
    channels, height, width = image.shape
    out = torch.zeros(channels, *size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            x, y, _ = inverse @ [j, i, 1]
            for v in (math.floor(y), math.floor(y) + 1):
                for u in (math.floor(x), math.floor(x) + 1):
                    if 0 <= u < width and 0 <= v < height:
                        out[:, i, j] += image[:, v, u] * (1 - abs(u - x)) * (1 - abs(v - y))
    return out


@pytest.mark.parametrize("shape", [(14, 20), (9, 1)])
@pytest.mark.parametrize(("angle", "mirrored"), [(0.0, False), (33.0, True)])
def test_warp_equals_a_slow_one(shape, angle, mirrored):
    image = torch.randint(256, (3, *shape), dtype=torch.uint8)
    matrix = crop_matrix((shape[1] * 0.6, shape[0] * 0.4), 17.0, (11, 13), angle, mirrored)
    out = warp(image, matrix, (11, 13))
    expected = slow_warp(image, matrix, (11, 13))
    assert out.dtype == torch.uint8
    assert (out.double() - expected).abs().max() < 0.51
    assert (out == 0).any()
    assert (out > 0).any()


def test_a_crop_of_the_same_scale_is_a_cut_out():
    image = torch.randint(256, (3, 30, 40), dtype=torch.uint8)
    crop = warp(image, crop_matrix((20, 12), 16, (16, 16)), (16, 16))
    assert torch.equal(crop, image[:, 4:20, 12:28])
    mirrored = warp(image, crop_matrix((20, 12), 16, (16, 16), mirrored=True), (16, 16))
    assert torch.equal(mirrored, crop.flip(-1))


def test_swapped_joints():
    assert swap_joints(torch.tensor([10, 11, 12, 13]), ((0, 3), (1, 2))).tolist() == [13, 12, 11, 10]
    assert swap_joints(torch.arange(6).view(3, 2), ((0, 2),)).tolist() == [[4, 5], [2, 3], [0, 1]]


def test_a_region_without_a_side():
    with pytest.raises(InputError, match="a side above 0 pixels, got 0; check"):
        crop_matrix((1, 2), 0, (8, 8))
