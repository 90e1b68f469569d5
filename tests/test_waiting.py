"""What a training step or an evaluation does for every batch waits for no GPU and stays on one device.

Fake CUDA tensors have no values: reading one raises, and so does an operation on tensors of two devices.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import backpass
from backpass.agc import AdaptiveGradientClipping
from backpass.pgt import power_grad_binary_cross_entropy_with_logits
from backpass.pgt.arguments import CrossEntropyOptions
from backpass.pgt.compiled import label_surrogate
from backpass.reparam import DyRep
from backpass.sgs.dependence import Autocorrelation, Dependence, MutualInformation
from backpass.sgs.near_equal import MutualInformationWithoutNearEqual
from backpass.training.augment import Augmentation
from backpass.training.batches import move
from backpass.training.classification import Classification
from backpass.training.dense.keypoints import KeypointHeatmaps
from backpass.training.dense.person_crops import PoseTarget
from backpass.training.dense.segmentation import SemanticSegmentation
from backpass.training.loader import epoch_generator
from backpass.training.traces import TraceRecorder

CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def on_cuda(model: nn.Module, kernels: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """Put fake parameters with gradients on the GPU, kernels in a memory format."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                memory_format = kernels if parameter.ndim == 4 else torch.contiguous_format
                moved = nn.Parameter(torch.empty_like(parameter, device=CUDA, memory_format=memory_format))
                module._parameters[name] = moved
                moved.grad = torch.empty_like(moved)
    return model


def labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device=CUDA)


def test_a_value_that_is_read_and_a_tensor_of_another_device_are_found(fake: FakeTensorMode) -> None:
    with pytest.raises(DataDependentOutputException):
        bool(torch.ones((), device=CUDA))
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=CUDA) + torch.ones(2)
    with pytest.raises(DataDependentOutputException):  # the default waits, as its docstring states
        AdaptiveGradientClipping(on_cuda(net())).clip_gradients()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_scaled_and_clipped(fake: FakeTensorMode, memory_format: torch.memory_format) -> None:
    model = on_cuda(net(), memory_format)
    sgs = backpass.SpatialGradientScaling(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        sgs.scale_gradients(optimizer)
        AdaptiveGradientClipping(model, error_if_nonfinite=False).clip_gradients()
        optimizer.step()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
    assert sgs.scalings["0.weight"].device == CUDA


@pytest.mark.parametrize("attached", [False, True])
def test_updates_are_scaled(fake: FakeTensorMode, attached: bool) -> None:
    model = on_cuda(net())
    sgs = backpass.SpatialGradientScaling(model, apply="update")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if attached:
        sgs.attach(optimizer)
        optimizer.step()
    else:
        with sgs.scaled_update():
            optimizer.step()


@pytest.mark.parametrize("metric", ["synflow", "snip", "grad_norm", "random"])
def test_scores_are_recorded(metric: str) -> None:
    model = net()
    dyrep = DyRep(model, torch.optim.SGD(model.parameters(), lr=0.1), metric=metric)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_cuda(model)
        for _ in range(2):
            dyrep.record()
    assert dyrep.state_dict()["records"]["0"].device.type == ("cpu" if metric == "random" else "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_computed(fake: FakeTensorMode, dtype: torch.dtype) -> None:
    logits, weight = torch.empty(8, 5, device=CUDA, dtype=dtype), torch.empty(5, device=CUDA, dtype=dtype)
    logits.requires_grad_()
    target = torch.empty_like(logits)
    losses = [
        backpass.power_grad_cross_entropy(logits, labels(8), weight, label_smoothing=0.1, alpha=0.3),
        backpass.power_grad_cross_entropy(logits, target, weight, alpha=0.3),
        power_grad_binary_cross_entropy_with_logits(logits, target, weight, pos_weight=weight, alpha=0.3),
        label_surrogate(logits, labels(8), weight, CrossEntropyOptions(-100, "mean", 0.1), 0.3),
    ]
    assert {loss.device for loss in losses} == {CUDA}


@pytest.mark.parametrize("kind", [MutualInformation, Autocorrelation, MutualInformationWithoutNearEqual])
def test_ranges_of_feature_maps_are_widened(fake: FakeTensorMode, kind: type[Dependence]) -> None:
    dependence = kind((3, 3), 4, device=CUDA)
    dependence.observe(torch.empty(2, 4, 8, 8, device=CUDA), (1, 1), [(1, 1), (1, 1)])
    assert {tensor.device for tensor in (*dependence.minima, *dependence.maxima, *dependence.sums)} == {CUDA}


def test_images_are_augmented(fake: FakeTensorMode) -> None:
    augmentation, images = Augmentation(), torch.empty(8, 3, 32, 32, dtype=torch.uint8, device=CUDA)
    draws = augmentation.draw(8, 32, 32, epoch_generator(0, 0, "augmentation")).to(CUDA)
    augmented = augmentation.after_normalize(augmentation.before_normalize(images, draws), draws)
    assert augmented.device == CUDA


def test_batches_are_evaluated_and_traced(fake: FakeTensorMode) -> None:
    classification = Classification().evaluation(CUDA, alpha=0.3)
    classification.update(torch.empty(8, 5, device=CUDA), labels(8))
    scene = torch.zeros(2, 8, 8, dtype=torch.int64, device=CUDA)
    SemanticSegmentation(5).evaluation(CUDA).update(torch.empty(2, 5, 8, 8, device=CUDA), scene)
    people, crops = KeypointHeatmaps(4, pairs=((0, 1),), quarter_pixel=True), torch.empty(2, 3, 64, 64, device=CUDA)
    joints, affine = torch.empty(2, 4, 2, device=CUDA), torch.empty(2, 2, 3, device=CUDA, dtype=torch.float64)
    visible, size = torch.ones(2, 4, dtype=torch.bool, device=CUDA), torch.ones(2, device=CUDA, dtype=torch.float64)
    target = PoseTarget(joints, visible, affine, joints.double(), visible, size)
    people.evaluation(CUDA).update(people.predict(lambda x: x[:, :1].expand(-1, 4, -1, -1), crops), target)
    traces = TraceRecorder(1, CUDA)
    traces.start_step(0, 1)
    traces.output(torch.empty(8, 5, device=CUDA))
    traces.gradients(on_cuda(net()))


class Copies(TorchDispatchMode):
    """Records whether the copies between devices are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.waited.append(not (kwargs or {}).get("non_blocking", False))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("source", "target", "waited"), [("cpu", "cuda", False), ("cuda", "cpu", True)])
def test_a_batch_is_waited_for_on_its_way_to_the_cpu_alone(
    fake: FakeTensorMode, source: str, target: str, waited: bool
) -> None:
    batch = {"images": torch.empty(2, 3, 4, 4, device=source), "labels": torch.empty(2, device=source)}
    with Copies() as copies:
        moved = move(batch, torch.device(target), torch.channels_last)
    assert {tensor.device.type for tensor in moved.values()} == {target}
    assert copies.waited == [waited, waited]
