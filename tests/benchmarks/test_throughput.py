"""The bare loop does the same work as the trainer, so that their speeds may be compared."""

import torch

from backpass.experiments.recipes import get_recipe
from backpass.training.augment import crop, cut, flip, normalize
from backpass.training.recipe import Runtime


def test_the_bare_loop_augments_as_the_recipe_does(benchmark_module):
    throughput = benchmark_module("throughput")
    recipe, data = get_recipe("cifar-200"), throughput.generated_data(12)
    loop = throughput.BareLoop(recipe, data, Runtime(device="cpu", channels_last=True), "cpu")
    indices = torch.tensor([3, 0, 11, 7, 7, 2])
    torch.manual_seed(5)
    images = loop.augmented(indices)
    torch.manual_seed(5)
    settings = recipe.augmentation
    offsets = torch.randint(2 * settings.crop_padding + 1, (6, 2, 1)).flatten(1)
    flipped = torch.rand(6) >= 0.5
    centers = torch.randint(32, (6, 2, 1)).flatten(1)
    assert 0 < flipped.sum() < 6
    expected = flip(crop(data.train.images[indices], offsets, settings.crop_padding), flipped)
    expected = cut(normalize(expected, data.mean, data.std), centers, settings.cutout)
    torch.testing.assert_close(images, expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(loop.augmented(indices), images)
