import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.training.dense.windows import window_logits, window_starts


def pointwise():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).double()


def local():
    """A net that sees two pixels to each side."""
    convs = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    return convs.double()


def picture(height=23, width=31):
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def slow_mean(model, image, window, step, flip):
    """Average over the windows pixel by pixel; every window is an image of its own."""
    height, width = image.shape[-2:]
    sums, counts = {}, {}
    y = 0
    while True:
        y0 = min(y, height - window[0])
        x = 0
        while True:
            x0 = min(x, width - window[1])
            part = image[:, y0 : y0 + window[0], x0 : x0 + window[1]]
            probabilities = model(part[None])[0].softmax(0)
            if flip:
                probabilities = (probabilities + model(part.flip(2)[None])[0].softmax(0).flip(2)) / 2
            for i in range(window[0]):
                for j in range(window[1]):
                    key = (y0 + i, x0 + j)
                    sums[key] = sums.get(key, 0) + probabilities[:, i, j]
                    counts[key] = counts.get(key, 0) + 1
            if x0 + window[1] == width:
                break
            x += step[1]
        if y0 + window[0] == height:
            break
        y += step[0]
    return torch.stack([torch.stack([sums[i, j] / counts[i, j] for j in range(width)], 1) for i in range(height)], 1)


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_windows_equal_slow_ones(flip):
    model, images = local(), picture()
    logits = window_logits(model, images, (9, 12), flip=flip)
    for image, result in zip(images, logits, strict=True):
        torch.testing.assert_close(result.softmax(0), slow_mean(model, image, (9, 12), (6, 8), flip))
        torch.testing.assert_close(result.exp().sum(0), torch.ones(23, 31, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("window", [(9, 12), (23, 31), (40, 12), (64, 64), None])
def test_windows_equal_the_whole_image_for_a_net_of_single_pixels(window):
    model, images = pointwise(), picture()
    torch.testing.assert_close(window_logits(model, images, window), model(images).log_softmax(1))


@torch.no_grad()
def test_windows_equal_the_whole_image_wherever_the_receptive_field_lies_inside_all_windows():
    model, images = local(), picture()
    whole = model(images).log_softmax(1)
    parts = window_logits(model, images, (9, 12), flip=False)
    inside = torch.ones(23, 31, dtype=torch.bool)
    for start in window_starts(23, 9, 6):
        for edge in {start, start + 9} - {0, 23}:
            inside[edge - 2 : edge + 2] = False
    for start in window_starts(31, 12, 8):
        for edge in {start, start + 12} - {0, 31}:
            inside[:, edge - 2 : edge + 2] = False
    assert inside.sum() > 50
    torch.testing.assert_close(parts[..., inside], whole[..., inside])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(parts[..., ~inside], whole[..., ~inside])


@torch.no_grad()
def test_flipping_averages_with_the_mirrored_copy():
    model, images = local(), picture()
    straight, mirrored = model(images).softmax(1), model(images.flip(-1)).softmax(1).flip(-1)
    torch.testing.assert_close(window_logits(model, images, None).exp(), (straight + mirrored) / 2)
    assert not torch.allclose(straight, mirrored)
    torch.testing.assert_close(window_logits(model, images, None, flip=False).exp(), straight)


@torch.no_grad()
def test_small_images_are_padded_on_all_sides_with_zeros():
    model, images = local(), picture(5, 31)
    padded = torch.zeros(2, 3, 10, 31, dtype=torch.float64)
    padded[:, :, 2:7] = images
    expected = window_logits(model, padded, (10, 12))[:, :, 2:7]
    torch.testing.assert_close(window_logits(model, images, (10, 12)), expected)


def test_the_windows_of_cityscapes():
    seen = []

    def model(images):
        seen.append(images.shape)
        return torch.zeros(len(images), 2, *images.shape[-2:])

    window_logits(model, torch.zeros(1, 1, 1024, 2048), (713, 713))
    assert seen == [(2, 1, 713, 713)] * 8
    assert window_starts(1024, 713, 476) == [0, 311]


@torch.no_grad()
def test_impossible_probabilities_stay_finite():
    logits = window_logits(lambda x: x * 1e6, torch.tensor([[[[1.0]], [[0.0]]]]), None)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("window", "fraction"), [((0, 9), 2 / 3), ((9, 9), 0.0), ((9, 9), 1.5)])
def test_bad_windows(window, fraction):
    with pytest.raises(InputError, match="at least 1x1 pixels and 0 < stride_fraction <= 1"):
        window_logits(pointwise(), picture(), window, stride_fraction=fraction)


def test_a_model_that_does_not_upsample():
    with pytest.raises(InputError, match=r"\(23, 31\), got \(11, 15\); upsample"):
        window_logits(nn.MaxPool2d(2), picture(), None)
