"""Every kind of model and layer that a method can meet."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as spectral_norm_of_old
from torch.nn.utils import weight_norm as weight_norm_of_old
from torch.utils.checkpoint import checkpoint

from battery.loop import CLASSES, DEVICES, Loop, examine, net
from battery.rows import Refusing, Row


@pytest.mark.parametrize("device", DEVICES)
def test_channels_last(row: Row, device: str) -> None:
    outcome = examine(row, Loop(device=device, memory_format=torch.channels_last))
    gradient = outcome.gradients["0.weight"]
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert not gradient.is_contiguous()


class Checkpointed(nn.Module):
    """Forgets activations inside, and computes them again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            self.runs += torch.is_grad_enabled()
            return self.inner(x)

        output: Tensor = checkpoint(run, x, use_reentrant=False)
        return output


def test_activation_checkpointing(row: Row) -> None:
    wrapped: list[Checkpointed] = []

    def wrap(model: nn.Module) -> nn.Module:
        wrapped.append(Checkpointed(model))
        return wrapped[-1]

    # Batch statistics are updated in both runs of a step, with any checkpointed model.
    examine(row, Loop(build=lambda: net().eval(), wrap=wrap))
    assert wrapped[0].runs == 4


# Layers


def test_frozen_layers(row: Row) -> None:
    def build() -> nn.Module:
        model = net()
        model[0].requires_grad_(False)
        return model

    outcome = examine(row, Loop(build=build))
    assert "0.weight" not in outcome.gradients
    assert torch.equal(outcome.state["0.weight"], Loop(build=build).new_model().get_parameter("0.weight"))


class Skipping(nn.Module):
    """Leaves one convolution out in every second step."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes = nn.Conv2d(3, 3, 3, padding=1)
        self.always = net()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps % 2 == 1 or not self.training:
            x = x + self.sometimes(x)
        output: Tensor = self.always(x)
        return output


@pytest.mark.parametrize("set_to_none", [True, False], ids=["no_gradient", "zero_gradient"])
def test_layer_unused_in_a_step(row: Row, set_to_none: bool) -> None:
    outcome = examine(row, Loop(build=Skipping, steps=2, set_to_none=set_to_none))
    assert ("sometimes.weight" in outcome.gradients) is not set_to_none


def shared() -> nn.Module:
    conv, twin = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    twin.weight = conv.weight
    return nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), twin, nn.Flatten(), nn.Linear(3 * 64, CLASSES))


def test_convolution_shared_by_modules_and_calls(row: Row) -> None:
    examine(row, Loop(build=shared))


class Antisymmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.flip(-1)


class FromMatrix(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.view(-1, 3, 3, 3)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)


def parametrised(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = net()
        change(model[0])
        return model

    return build


PARAMETRISATIONS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda conv: parametrize.register_parametrization(conv, "weight", Antisymmetric()),
    "weight_norm_of_old": weight_norm_of_old,
    "spectral_norm_of_old": spectral_norm_of_old,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", amount=0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", list(PARAMETRISATIONS))
def test_parametrised_kernel(row: Row, kind: str) -> None:
    outcome = examine(row, Loop(build=parametrised(PARAMETRISATIONS[kind])))
    assert "0.weight" not in dict(outcome.model.named_parameters())


def test_kernel_made_from_a_parameter_of_another_shape(row: Row, refusing: Refusing) -> None:
    def change(conv: nn.Module) -> None:
        parametrize.register_parametrization(conv, "weight", FromMatrix(), unsafe=True)

    with refusing(row, "a kernel made from a parameter of another shape"):
        examine(row, Loop(build=parametrised(change)))


def lazy() -> nn.Module:
    return nn.Sequential(
        nn.Identity(),
        nn.LazyConv2d(4, 3, padding=1),
        nn.ReLU(),
        nn.LazyConv2d(4, (3, 1)),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def test_made_before_the_first_batch_of_lazy_layers(row: Row) -> None:
    examine(row, Loop(build=lazy, first_batch=True))


def test_measured_before_the_first_batch_of_lazy_layers(row: Row, refusing: Refusing) -> None:
    loop = Loop(build=lazy)
    model = loop.new_model()
    method = row.ours(model)
    with refusing(row, "measured before the lazy layers' first batch"):
        method.measure([loop.batch(0)[0]])
    model(loop.batch(0)[0])
    method.measure([loop.batch(0)[0]])


# Wrappers


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel(row: Row) -> None:
    loop = Loop(device="cuda" if torch.cuda.is_available() else "cpu")
    examine(row, loop.but(wrap=nn.DataParallel))
    assert_named_plainly(row, nn.DataParallel)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("views", [False, True], ids=["copied", "bucket_views"])
def test_distributed_data_parallel(row: Row, views: bool) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=views)

    examine(row, Loop(wrap=wrap))
    assert_named_plainly(row, wrap)


def assert_named_plainly(row: Row, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Check that what was measured on the wrapped model loads beside the plain one."""
    plain, wrapped = row.ours(net()), row.ours(wrap(net()))
    wrapped.measure([Loop(dtype=torch.float32).batch(0)[0]])
    plain.load_state_dict(wrapped.state_dict())
