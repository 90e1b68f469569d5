"""Every method on the two tasks with a dense output: a class for each pixel, and heat maps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.training.dense.heatmaps import draw_heatmaps
from battery.loop import CLASSES, DEVICES, Loop, batch, examine
from battery.rows import PLAIN, POWER, Criterion, Loss, Row

SQUARED_ERROR = Loss(F.mse_loss, F.mse_loss, F.mse_loss)


def net(second: nn.Module, head: nn.Module) -> nn.Module:
    """Return two convolutions, the first with BN, and a head."""
    first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.ReLU(), head)


def segmenter() -> nn.Module:
    """Return a net with a dilated convolution, which gives a logit for each class and pixel."""
    return net(nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, CLASSES, 1))


def pose_net() -> nn.Module:
    """Return a net with a convolution of stride 2, and a transposed one to the heat maps."""
    return net(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, CLASSES, 4, stride=2, padding=1))


def scenes(seed: int) -> tuple[Tensor, Tensor]:
    """Return images and the class of each pixel."""
    images, _ = batch(seed)
    return images, torch.randint(CLASSES, (len(images), 8, 8), generator=torch.Generator().manual_seed(seed))


def persons(seed: int) -> tuple[Tensor, Tensor]:
    """Return images and heat maps."""
    images, _ = batch(seed)
    joints = 8 * torch.rand(len(images), CLASSES, 2, generator=torch.Generator().manual_seed(seed))
    return images, 9 * draw_heatmaps(joints, torch.ones(joints.shape[:2], dtype=torch.bool), (8, 8), 1.0)


def per_pixel(criterion: Criterion) -> Criterion:
    """Return a criterion of logits (N, C) for logits (N, C, H, W): each pixel is a sample."""
    return lambda output, target: criterion(output.movedim(1, -1).flatten(0, -2), target.flatten())


@dataclass(frozen=True)
class Dense:
    """A task, as the battery's loop knows it."""

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, Tensor]]

    def row(self, row: Row) -> Row:
        """Return the row with the task's loss; skip those whose loss has no place there."""
        if self.name == "segmentation":
            if row.loss is not PLAIN and row.loss is not POWER:
                pytest.skip("a pixel has one class")
            return replace(row, loss=replace(row.loss, definition=per_pixel(row.loss.definition)))
        if row.loss is not PLAIN:
            pytest.skip("pgt is refused where the loss is no cross-entropy: tests/training/dense/test_tasks.py")
        return replace(row, loss=SQUARED_ERROR)

    def loop(self, *, frozen_statistics: bool = False) -> Loop:
        """Return the loop on the task."""
        return Loop(build=(lambda: self.build().eval()) if frozen_statistics else self.build, draw=self.draw)


TASKS = [Dense("segmentation", segmenter, scenes), Dense("keypoints", pose_net, persons)]
on_both = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@on_both
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_dense_task(row: Row, task: Dense, device: str, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    examine(task.row(row), task.loop().but(device=device, memory_format=memory_format))


@on_both
def test_dense_task_in_bf16(row: Row, task: Dense) -> None:
    examine(task.row(row), task.loop().but(dtype=torch.float32, autocast=torch.bfloat16, steps=1))


@on_both
def test_dense_task_accumulated(row: Row, task: Dense) -> None:
    row, loop = task.row(row), task.loop(frozen_statistics=True)
    loop.assert_same(examine(row, loop.but(micro_batches=4)), loop.run(row.loss.ours, row.ours))


@on_both
def test_dense_task_compiled(row: Row, task: Dense) -> None:
    torch.compiler.reset()
    examine(task.row(row), task.loop().but(wrap=partial(torch.compile, fullgraph=True, backend="aot_eager")))


@on_both
@pytest.mark.slow
def test_dense_task_compiled_by_inductor(row: Row, task: Dense) -> None:
    torch.compiler.reset()
    examine(task.row(row), task.loop().but(dtype=torch.float32, wrap=partial(torch.compile, fullgraph=True)))


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@on_both
@pytest.mark.usefixtures("one_process")
def test_dense_task_distributed(row: Row, task: Dense) -> None:
    examine(task.row(row), task.loop().but(wrap=nn.parallel.DistributedDataParallel))
