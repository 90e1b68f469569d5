"""Augmentation against loops over images and pixels, then frequencies, memory format and errors."""

import pytest
import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.augment import (
    Augmentation,
    crop,
    cut,
    flip,
    normalize,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 6, c: int = 3, h: int = 7, w: int = 5, seed: int = 0) -> Tensor:
    # At least 1, so that a zero can only be padding.
    return torch.randint(1, 256, (n, c, h, w), dtype=torch.uint8, generator=generator(seed))


def augmented(images: Tensor, generator: torch.Generator, **settings: int) -> Tensor:
    """Return the images with the augmentations in ``settings`` alone."""
    augmentation = Augmentation(**({"crop_padding": 0, "flip": False, "cutout": 0} | settings))
    draws = augmentation.draw(len(images), *images.shape[-2:], generator)
    return augmentation.after_normalize(augmentation.before_normalize(images, draws), draws)


def loop_crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    n, _, h, w = images.shape
    out = torch.zeros_like(images)
    for image in range(n):
        for i in range(h):
            for j in range(w):
                y = i + int(offsets[image, 0]) - padding
                x = j + int(offsets[image, 1]) - padding
                if 0 <= y < h and 0 <= x < w:
                    out[image, :, i, j] = images[image, :, y, x]
    return out


def loop_cut(images: Tensor, centers: Tensor, size: int) -> Tensor:
    out = images.clone()
    for image, (y, x) in enumerate(centers.tolist()):
        top, left = y - size // 2, x - size // 2
        out[image, :, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    return out


def test_crop_is_the_window_of_the_padded_image() -> None:
    images = random_images()
    offsets = torch.randint(5, (6, 2), generator=generator(1))
    result = crop(images, offsets, padding=2)
    assert result.dtype == torch.uint8
    assert torch.equal(result, loop_crop(images, offsets, 2))
    assert not torch.equal(result, images)


def test_crop_at_the_padding_changes_nothing_and_next_to_it_shifts() -> None:
    images = random_images()
    assert torch.equal(crop(images, torch.full((6, 2), 2), padding=2), images)
    down = crop(images, torch.tensor([[1, 2]] * 6), padding=2)
    assert torch.equal(down[:, :, 1:], images[:, :, :-1])
    assert (down[:, :, 0] == 0).all()


def test_flip_mirrors_the_selected_images_only() -> None:
    images = random_images()
    flipped = torch.tensor([True, False, True, False, False, True])
    expected = torch.stack([torch.fliplr(x.permute(1, 2, 0)).permute(2, 0, 1) for x in images])
    expected[~flipped] = images[~flipped]
    assert torch.equal(flip(images, flipped), expected)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 16])
def test_cut_zeroes_the_clipped_square(size: int) -> None:
    images = normalize(random_images(n=35), [0.5] * 3, [0.25] * 3)
    centers = torch.cartesian_prod(torch.arange(7), torch.arange(5))
    before = images.clone()
    assert torch.equal(cut(images, centers, size), loop_cut(images, centers, size))
    assert torch.equal(images, before)


def test_cut_by_hand() -> None:
    images = torch.ones(2, 1, 4, 4)
    result = cut(images, torch.tensor([[0, 0], [2, 2]]), size=2)
    assert result[0, 0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert result[1, 0].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]


def test_normalize_agrees_with_float64() -> None:
    images = random_images()
    mean, std = [0.49, 0.48, 0.44], [0.24, 0.25, 0.26]
    channel = torch.tensor([mean, std], dtype=torch.float64).view(2, 3, 1, 1)
    expected = (images.double() / 255 - channel[0]) / channel[1]
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=2 * torch.finfo(torch.float32).eps, atol=1e-6)


def test_normalize_does_not_change_its_input() -> None:
    images = torch.rand(2, 1, 3, 3, generator=generator())
    before = images.clone()
    normalize(images, [0.5], [0.5], max_value=1.0)
    assert torch.equal(images, before)


def test_offsets_are_uniform() -> None:
    # The position of the one white pixel shows the offset.
    images = torch.zeros(9000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    landed = augmented(images, generator(), crop_padding=1).sum(0)[0]
    assert landed.sum() == 9000
    inner = landed[1:4, 1:4].double()
    assert inner.sum() == 9000
    chi_square = ((inner - 1000) ** 2 / 1000).sum()
    assert chi_square < 26.1  # 99.9 % of chi-square with 8 degrees of freedom


def test_half_of_the_images_are_flipped() -> None:
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(10000, 1, 1, 2)
    flipped = int(augmented(images, generator(), flip=True)[..., 0].sum())
    assert abs(flipped - 5000) < 165  # 3.3 standard deviations


def test_cutout_centres_are_uniform() -> None:
    centres = (augmented(torch.ones(12000, 1, 3, 4), generator(), cutout=1) == 0).sum(0)[0].double()
    chi_square = ((centres - 1000) ** 2 / 1000).sum()
    assert centres.sum() == 12000
    assert chi_square < 31.3  # 99.9 % of chi-square with 11 degrees of freedom


def test_results_depend_on_the_seed_only() -> None:
    images = random_images(n=20)
    for settings in ({"crop_padding": 2}, {"flip": True}, {"cutout": 2}):
        once, twice, other = (augmented(images, generator(seed), **settings) for seed in (3, 3, 4))
        assert torch.equal(once, twice)
        assert not torch.equal(once, other)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept(memory_format: torch.memory_format) -> None:
    images = random_images().contiguous(memory_format=memory_format)
    other = torch.channels_last if memory_format == torch.contiguous_format else torch.contiguous_format
    results = [
        augmented(images, generator(), crop_padding=2),
        augmented(images, generator(), flip=True),
        augmented(images, generator(), cutout=2),
        normalize(images, [0.5] * 3, [0.5] * 3),
    ]
    for result in results:
        assert result.is_contiguous(memory_format=memory_format)
        assert not result.is_contiguous(memory_format=other)


def test_switching_one_augmentation_off_does_not_change_the_draws_of_the_others() -> None:
    full = Augmentation(crop_padding=2, flip=True, cutout=2).draw(8, 7, 5, generator())
    ablated = Augmentation(crop_padding=0, flip=False, cutout=0).draw(8, 7, 5, generator())
    assert torch.equal(full.flipped, ablated.flipped)
    assert torch.equal(full.centers, ablated.centers)
    assert full.offsets.any()
    assert not ablated.offsets.any()


def test_augmentation_is_crop_flip_normalize_cut() -> None:
    images = random_images()
    augmentation = Augmentation(crop_padding=2, flip=True, cutout=3)
    draws = augmentation.draw(6, 7, 5, generator())
    normalized = normalize(augmentation.before_normalize(images, draws), [0.5] * 3, [0.5] * 3)
    result = augmentation.after_normalize(normalized, draws)

    cropped = loop_crop(images, draws.offsets, 2)
    cropped[draws.flipped] = cropped[draws.flipped].flip(-1)
    expected = loop_cut((cropped / 255 - 0.5) / 0.5, draws.centers, 3)
    torch.testing.assert_close(result, expected)


def test_augmentation_switched_off_returns_the_images() -> None:
    images = random_images()
    off = Augmentation(crop_padding=0, flip=False, cutout=0)
    draws = off.draw(6, 7, 5, generator())
    assert off.before_normalize(images, draws) is images
    assert off.after_normalize(images, draws) is images


def test_errors_name_the_values_received() -> None:
    images = random_images()
    with pytest.raises(InputError, match=r"expected images of shape \(N, C, H, W\), got \(3, 7, 5\)"):
        normalize(images[0], [0.5] * 3, [0.5] * 3)
    with pytest.raises(InputError, match=r"shape \(3,\), one value per channel, got \(1,\) and \(3,\)"):
        normalize(images, [0.5], [0.5] * 3)
    with pytest.raises(InputError, match=r"expected offsets of shape \(6, 2\), got \(5, 2\); draw them for 6 images"):
        crop(images, torch.zeros(5, 2, dtype=torch.int64), 2)
    with pytest.raises(InputError, match=r"expected flipped of shape \(6,\), got \(1,\)"):
        flip(images, torch.tensor([True]))
    with pytest.raises(InputError, match=r"expected centers of shape \(6, 2\), got \(6,\)"):
        cut(images, torch.zeros(6, dtype=torch.int64), 2)
    with pytest.raises(InputError, match=r"expected augmentation\.crop_padding to be an integer >= 0, got -1"):
        Augmentation(crop_padding=-1)
    with pytest.raises(InputError, match="expected cutout < 8 for images of 8x8 pixels, got 16; lower it"):
        Augmentation().check(8, 8)
