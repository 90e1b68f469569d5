"""Streets of rectangles in the format of Cityscapes, and patches of the same colours for pretraining."""

from pathlib import Path

import numpy
import torch
from PIL import Image
from torchvision.datasets import Cityscapes

from backpass.training import ImageData, ImageSplit

CLASSES = [found for found in Cityscapes.classes if 0 <= found.train_id < 255]
HEIGHT, WIDTH, BLOCK = 65, 129, 32


def textured(numbers: numpy.random.Generator, number: int, height: int, width: int) -> numpy.ndarray:
    """Return an area of one class: its colour in stripes of two shades, with noise."""
    stripes = (numpy.arange(width)[None] + number * numpy.arange(height)[:, None]) // 3 % 2
    shade = numbers.uniform(0.8, 1.1) - 0.2 * stripes
    colour = numpy.array(CLASSES[number].color)
    pixels = shade[..., None] * colour + numbers.normal(0, 12, (height, width, 3))
    return pixels.clip(0, 255).astype(numpy.uint8)


def scene(numbers: numpy.random.Generator) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return an image of eight areas of different classes, and its raw ids; the last row and column are unlabelled."""
    image = numpy.zeros((HEIGHT, WIDTH, 3), dtype=numpy.uint8)
    ids = numpy.zeros((HEIGHT, WIDTH), dtype=numpy.uint8)
    chosen = numbers.permutation(len(CLASSES))
    cells = [(top, left) for top in range(0, HEIGHT - 1, BLOCK) for left in range(0, WIDTH - 1, BLOCK)]
    for number, (top, left) in zip(chosen, cells, strict=False):
        area = slice(top, top + BLOCK), slice(left, left + BLOCK)
        image[area] = textured(numbers, number, BLOCK, BLOCK)
        ids[area] = CLASSES[number].id
    return image, ids


def write_city(root: Path, train: int, val: int) -> None:
    """Write generated scenes below ``leftImg8bit`` and ``gtFine``."""
    numbers = numpy.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            image, ids = scene(numbers)
            name = f"{split}ville/{split}ville_{index:06d}_000019"
            for kind, suffix, pixels in (("leftImg8bit", "leftImg8bit", image), ("gtFine", "gtFine_labelIds", ids)):
                path = root / kind / split / f"{name}_{suffix}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def patches(train: int = 380, test: int = 190) -> ImageData:
    """Return images of 32x32 pixels of one class each."""
    numbers = numpy.random.default_rng(1)

    def split(count: int) -> ImageSplit:
        labels = numpy.arange(count) % len(CLASSES)
        pixels = numpy.stack([textured(numbers, label, 32, 32) for label in labels])
        return ImageSplit(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))

    names = tuple(found.name for found in CLASSES)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return ImageData("generated patches", split(train), split(test), names, (32, 32), mean, std)
