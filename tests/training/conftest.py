from pathlib import Path

import pytest
import torch

from backpass.training.augment import Augmentation
from backpass.training.images import ImageData, ImageSplit
from backpass.training.recipe import DyRepSettings, OptimizerSettings, Recipe, SgsSettings
from training.folders import write_folder


@pytest.fixture
def images() -> ImageData:
    """Forty-eight 8x8 images of three classes that differ in which third of the rows is bright."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> ImageSplit:
        labels = torch.arange(count) % 3
        pixels = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            image[:, label * 3 : label * 3 + 2] += 180
        return ImageSplit(pixels.to(torch.uint8), labels)

    return ImageData("stripes", split(48), split(15), ("top", "middle", "bottom"), (8, 8), (0.2,), (0.3,))


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        model="digits_net",
        epochs=3,
        batch_size=16,
        optimizer=OptimizerSettings(lr=0.05),
        augmentation=Augmentation(crop_padding=1, flip=True, cutout=2),
        sgs=SgsSettings(warmup=1, every=1, batches=1),
        dyrep=DyRepSettings(every=1, until=9, metric="snip", recalibration_batches=1),
    )


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    write_folder(root, {"train": {"cat": 8, "eagle": 4}, "test": {"cat": 2, "eagle": 3}})
    return root
