"""Folders of small images."""

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_folder(
    root: Path,
    counts: dict[str, dict[str, int]],
    size: tuple[int, int] = (6, 6),
) -> dict[str, dict[str, list[np.ndarray]]]:
    """Write ``counts[split][class]`` PNG images below ``root`` and return their pixels."""
    written: dict[str, dict[str, list[np.ndarray]]] = {}
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            images = [pixels(len(split) * 1000 + len(name) * 100 + i, *size) for i in range(count)]
            for i, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{i:03}.png")
            written.setdefault(split, {})[name] = images
    return written
