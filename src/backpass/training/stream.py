"""Loader of image files, which worker processes decode on the fly, as for ImageNet."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backpass._internal.settings import Range, check_settings
from backpass.errors import missing_extra
from backpass.training.augment import normalize
from backpass.training.image_folder import decode_image
from backpass.training.images import FileSplit, ImageData
from backpass.training.loader import Batch, BatchPlan, Loader, check_count

__all__ = ["StreamAugmentation", "StreamLoader"]


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


class StreamLoader(Loader):
    """Loader of image files, which are decoded and transformed by worker processes and normalised on the device.

    With an augmentation, the transforms are a random resized crop (bilinear), a flip and colour jitter. Without, the
    shorter side is resized to ``image_size / crop_fraction`` and the centre is cropped. The transforms are those of
    ``torchvision.transforms.v2``, seeded for each position in the epoch, so the batches do not depend on ``workers``.

    Args:
        split: files and labels.
        data: data set of the split, for image size and normalisation.
        plan: order and batches.
        augmentation: random transforms for training; default: none.
        device: device of the batches.
        channels_last: return images in the ``torch.channels_last`` memory format.
        workers: number of worker processes, which persist between epochs; 0: decode in this process.
        prefetch: number of batches that each worker prepares in advance.
        crop_fraction: side of the centre crop over the resized shorter side; 0.875 is 224 of 256 pixels.

    Raises:
        InputError: the plan is for another number of images; during iteration: a file cannot be decoded.
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
        prefetch: int = 2,
        crop_fraction: float = 0.875,
    ) -> None:
        super().__init__(plan)
        check_count(plan, len(split))
        self.device = torch.device(device)
        self.mean = torch.tensor(data.mean, device=self.device)
        self.std = torch.tensor(data.std, device=self.device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.workers = workers
        self.prefetch = prefetch
        self._dataset = _StreamDataset(split, _stream_transform(data.image_size, augmentation, crop_fraction))
        self._planned: list[list[tuple[int, int]]] = []
        self._kept = self._data_loader(self._planned, keep_workers=True)
        self._in_use = False

    def batches(self, order: Tensor, shards: list[slice], generator: torch.Generator) -> Iterator[Batch]:
        """Yield one batch for each range of positions in ``order`` (:meth:`Loader.batches`).

        An iteration that starts during another, as for measuring within an epoch, gets its own workers.
        """
        seeds = torch.randint(2**62, (len(order),), generator=generator)
        planned = [list(zip(order[s].tolist(), seeds[s].tolist(), strict=True)) for s in shards]
        if self._in_use:
            yield from map(self._finish, self._data_loader(planned, keep_workers=False))
            return
        self._in_use = True
        self._planned[:] = planned
        try:
            yield from map(self._finish, self._kept)
        finally:
            self._in_use = False

    def _finish(self, batch: Batch) -> Batch:
        images = batch[0].to(self.device, non_blocking=True, memory_format=self.memory_format)
        return normalize(images, self.mean, self.std), batch[1].to(self.device, non_blocking=True)

    def _data_loader(self, planned: list[list[tuple[int, int]]], keep_workers: bool) -> DataLoader[Any]:
        return DataLoader(
            self._dataset,
            batch_sampler=planned,
            num_workers=self.workers,
            persistent_workers=keep_workers and self.workers > 0,
            prefetch_factor=self.prefetch if self.workers else None,
            pin_memory=self.device.type == "cuda",
            # Without one, DataLoader would draw its base seed from the global generator.
            generator=torch.Generator().manual_seed(self.plan.seed),
        )


class _StreamDataset(Dataset[Batch]):
    """Images and labels, indexed by pairs of index and seed."""

    def __init__(self, split: FileSplit, transform: Any) -> None:
        self.split = split
        self.transform = transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:  # type: ignore[override]
        index, seed = item
        image = decode_image(self.split.files[index])
        with torch.random.fork_rng(devices=[]):
            # The transforms of torchvision draw from the global CPU generator.
            torch.default_generator.manual_seed(seed)
            pixels: Tensor = self.transform(image)
        return pixels, int(self.split.labels[index])


def _stream_transform(
    image_size: tuple[int, int], augmentation: StreamAugmentation | None, crop_fraction: float
) -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise missing_extra("torchvision", "lab", "images decoded on the fly") from error
    if augmentation is None:
        steps = [v2.Resize(round(min(image_size) / crop_fraction)), v2.CenterCrop(image_size)]
    else:
        jitter = augmentation.color_jitter
        steps = [
            v2.RandomResizedCrop(image_size, scale=(augmentation.min_scale, 1.0)),
            v2.RandomHorizontalFlip(0.5 if augmentation.flip else 0.0),
            v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
        ]
    return v2.Compose([*steps, v2.PILToTensor()])
