"""Loader of image files, which worker processes decode on the fly, as for ImageNet."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from backpass._internal.imports import import_lab
from backpass._internal.settings import Range, check_settings
from backpass.training.augment import normalize
from backpass.training.image_folder import decode_image
from backpass.training.images import FileSplit, ImageData
from backpass.training.item_loader import ItemLoader
from backpass.training.loader import Batch, BatchPlan

__all__ = ["StreamAugmentation", "StreamLoader"]

_CROP_FRACTION = 0.875  # 224 of 256 pixels


@dataclass(frozen=True)
class StreamAugmentation:
    """Random resized crop, flip and colour jitter of images decoded on the fly; defaults: ImageNet settings of SGS.

    Attributes:
        min_scale: smallest fraction of the area of an image in the random crop (default of torchvision: 0.08).
        flip: mirror each image left to right with probability 1/2.
        color_jitter: largest relative change of brightness, contrast and saturation.

    Raises:
        InputError: a setting is out of range.
    """

    min_scale: Annotated[float, Range(above=0, at_most=1)] = 0.08
    flip: bool = True
    color_jitter: Annotated[float, Range(at_least=0, below=1)] = 0.06

    def __post_init__(self) -> None:
        check_settings(self, "stream_augmentation")


class StreamLoader(ItemLoader):
    """Loader of image files, which are decoded and transformed by worker processes and normalised on the device.

    With an augmentation, the transforms are a random resized crop (bilinear), a flip and colour jitter. Without, the
    shorter side is resized to ``image_size / 0.875`` and the centre is cropped. The transforms are those of
    ``torchvision.transforms.v2``, seeded for each position in the epoch, so the batches do not depend on ``workers``.

    Args:
        split: files and labels.
        data: data set of the split, for image size and normalisation.
        plan: order and batches.
        augmentation: random transforms for training; default: none.
        device: device of the batches.
        channels_last: return images in the ``torch.channels_last`` memory format.
        workers: number of worker processes, which persist between epochs; 0: decode in this process.

    Raises:
        InputError: during iteration: a file cannot be decoded.
        MissingExtraError: torchvision is not installed.
    """

    def __init__(
        self,
        split: FileSplit,
        data: ImageData,
        plan: BatchPlan,
        augmentation: StreamAugmentation | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
    ) -> None:
        prepare = partial(_decoded, _stream_transform(data.image_size, augmentation))
        super().__init__(split, prepare, plan, device, channels_last, workers)
        self.mean = torch.tensor(data.mean, device=self.device)
        self.std = torch.tensor(data.std, device=self.device)

    def _on_device(self, batch: Any) -> Batch:
        pixels, labels = super()._on_device(batch)
        return normalize(pixels.contiguous(memory_format=self.memory_format), self.mean, self.std), labels


def _decoded(transform: Any, item: tuple[str, int], training: bool) -> tuple[Tensor, int]:
    file, label = item
    return transform(decode_image(file)), label


def _stream_transform(image_size: tuple[int, int], augmentation: StreamAugmentation | None) -> Any:
    v2 = import_lab("torchvision.transforms.v2", "torchvision", "images decoded on the fly")
    if augmentation is None:
        steps = [v2.Resize(round(min(image_size) / _CROP_FRACTION)), v2.CenterCrop(image_size)]
    else:
        jitter = augmentation.color_jitter
        steps = [
            v2.RandomResizedCrop(image_size, scale=(augmentation.min_scale, 1.0)),
            v2.RandomHorizontalFlip(0.5 if augmentation.flip else 0.0),
            v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
        ]
    return v2.Compose([*steps, v2.PILToTensor()])
