from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backpass.reparam import ACBlock
from backpass.reparam.conversion.conv_norm_pairs import find_pairs
from reference.reparam_cases import Residual, Untraceable, Wired, images

PROBES = [None, images(2, 3, 8, 8)]
RESIDUAL = {"conv1": "bn1", "conv2": "bn2", "shortcut.0": "shortcut.1"}


@pytest.mark.parametrize("probe", PROBES)
def test_pairs_follow_the_data_and_not_the_order_of_the_modules(probe: Tensor | None) -> None:
    crossed = Wired(lambda s, x: s.n(s.b(s.act(s.m(s.a(x))))))
    assert find_pairs(crossed, probe) == ({"a": "m", "b": "n"}, {}, set(), None)
    assert find_pairs(Residual(), probe) == (RESIDUAL, {}, set(), None)


@pytest.mark.parametrize(
    ("wiring", "traced", "probed"),
    [
        (lambda s, x: s.n(s.a(x).mul(2)), "goes to mul, not to a batch", "goes to mul, not to a batch"),
        (lambda s, x: s.n(s.act(s.a(x))), "goes to act, not to a batch", "goes to relu, not to a batch"),
        (lambda s, x: s.n(torch.relu_(s.a(x))), "goes to relu_, not to a batch", "goes to n, relu_, not to one"),
        (lambda s, x: (y := s.a(x), s.n(y[:]))[1], "goes to getitem, not", "goes to __getitem__, not"),
        (lambda s, x: [y := s.a(x), s.n(y) + y][1], "goes to add, n, not to one", "goes to add, n, not to one"),
        (lambda s, x: s.a(x), "goes to the output of the model", "goes to the output of the model"),
        (lambda s, x: {"y": [s.a(x)]}, "goes to the output of the model", "goes to the output of the model"),
        (lambda s, x: (y := s.a(x), s.n(y)), "goes to n, the output", "goes to n, the output"),
        (lambda s, x: [y := s.a(x), s.n(y) + s.m(y)][1], "goes to m, n, not to one", "goes to m, n, not to one"),
        (lambda s, x: s.n(s.a(x)) + s.n(s.b(x)), "n also normalises b", "n also normalises b"),
        (lambda s, x: s.n(s.a(x)) + s.n(x), "n also normalises x", "n also normalises another tensor"),
        (lambda s, x: s.n(s.a(x)) + s.m(s.a(x)), "goes to m, n, not to one", "goes to m, n, not to one"),
        (lambda s, x: [s.a(x), s.n(x)][1], "goes to nothing", "goes to nothing"),
        (lambda s, x: s.n(x), "the forward pass never calls it", "the forward pass never calls it"),
    ],
)
def test_convolutions_whose_output_has_another_use_stay_single(
    wiring: Callable[[Wired, Tensor], Any], traced: str, probed: str
) -> None:
    for probe, reason in zip(PROBES, (traced, probed), strict=True):
        pairs, reasons, *_ = find_pairs(Wired(wiring), probe)
        assert "a" not in pairs
        assert reason in reasons["a"]


@pytest.mark.parametrize(
    ("wiring", "reason"),
    [
        (lambda s, x: s.n(s.a(x)) + s.a.weight.mean(), "reads its weight, which a block does not have"),
        (lambda s, x: s.n(s.a(x.to(s.a.weight.dtype))), "reads its weight, which a block does not have"),
        (lambda s, x: s.n(s.a(x)) + nn.functional.conv2d(x, s.a.weight, s.a.bias, padding=1), "its bias and weight"),
        (lambda s, x: s.n(s.a(x)) * s.n.running_var.view(1, 3, 1, 1), "reads running_var of its batch normalisation n"),
    ],
)
@pytest.mark.parametrize("probe", PROBES)
def test_layers_whose_tensors_the_forward_pass_reads_are_no_pairs(
    wiring: Callable[[Wired, Tensor], Any], reason: str, probe: Tensor | None
) -> None:
    model = Wired(lambda s, x: wiring(s, x) + s.m(s.b(x)))
    found = find_pairs(model, probe)
    assert found.pairs == {"b": "m"}
    assert reason in found.unpaired["a"]
    assert found.read == (set() if "normalisation" in reason else {"a"})


@pytest.mark.parametrize("probe", PROBES)
def test_reading_all_parameters_of_the_model_is_no_reading_of_a_layer(probe: Tensor | None) -> None:
    model = Wired(lambda s, x: s.n(s.a(x.to(next(s.parameters()).dtype))))
    assert find_pairs(model, probe).pairs == {"a": "n"}


@pytest.mark.parametrize("probe", PROBES)
def test_layers_called_twice_in_the_same_way_are_pairs(probe: Tensor | None) -> None:
    assert find_pairs(Wired(lambda s, x: s.n(s.a(s.n(s.a(x))))), probe)[0] == {"a": "n"}


def test_what_one_mode_alone_does_counts() -> None:
    pairs, reasons, *_ = find_pairs(Wired(lambda s, x: s.n(s.a(x)) if s.training else s.n(s.act(s.a(x)))))
    assert pairs == {}
    assert reasons["a"] == "its output goes to act, n, not to one batch normalisation"


def test_models_that_cannot_be_traced_need_a_probe_unless_their_parts_can() -> None:
    pairs, reasons, *_ = find_pairs(Untraceable())
    assert pairs == {"shortcut.0": "shortcut.1"}
    assert "the forward pass could not be traced (Untraceable: " in reasons["conv1"]
    assert reasons["conv1"].endswith("pass probe=<an input>")
    assert find_pairs(Untraceable(), images(2, 3, 8, 8)) == (RESIDUAL, {}, set(), None)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_around_the_model_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    pairs, reasons, read, untraced = find_pairs(wrap(Residual()))
    assert [norm.rpartition("module.")[2].removeprefix("_orig_mod.") for norm in pairs.values()] == [*RESIDUAL.values()]
    assert (reasons, read, untraced) == ({}, set(), None)


def test_neighbours_in_a_sequential_with_an_untraceable_part_are_pairs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), Untraceable()
    )
    pairs, reasons, *_ = find_pairs(model)
    assert pairs == {"0": "1", "5.shortcut.0": "5.shortcut.1"}
    assert reasons["2"] == "its output goes to 3, not to a batch normalisation"


def test_layers_inside_a_block_do_not_count() -> None:
    model = nn.Sequential(ACBlock(nn.Conv2d(3, 3, 3)), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    assert find_pairs(model) == ({"1": "2"}, {}, set(), None)
    assert find_pairs(model, images(1, 3, 8, 8)) == ({"1": "2"}, {}, set(), None)


@pytest.mark.parametrize("probe", PROBES)
def test_the_model_comes_back_as_it_was(probe: Tensor | None) -> None:
    model = Residual()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_pairs(model, probe)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Remembering(Wired):
    """Keeps things on itself as it runs, as models with caches, counters and averages do."""

    def __init__(self) -> None:
        super().__init__(self.run)
        self.grid, self.steps, self.seen = None, 0, {"shapes": []}
        self.recent, self.pair, self.sums = deque([1]), ([1], []), torch.ones(2)
        self.key = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("average", torch.ones(3))
        self.register_buffer("adjacency", torch.eye(3).to_sparse())

    @staticmethod
    def run(model: "Remembering", x: Tensor) -> Tensor:
        if model.grid is None:
            model.grid = torch.ones_like(x[:1, :1])
        if model.training:
            model.steps += 1
            model.average.mul_(0.9)
            for parameter in model.parameters(recurse=False):  # as momentum encoders do
                parameter.data.mul_(0.9)
        model.seen["shapes"].append(x.shape)
        model.recent.append(2)
        model.pair[1].append(2)
        model.sums += 1
        model.last = model.n(model.a(x)) + torch.rand(1)
        return model.last * model.grid


@pytest.mark.parametrize("probe", PROBES)
def test_what_the_model_keeps_on_itself_as_it_runs_is_undone(probe: Tensor | None) -> None:
    model = Remembering()
    average, state = model.average, torch.get_rng_state()
    assert find_pairs(model, probe).pairs == {"a": "n"}
    assert (model.grid, model.steps, model.seen, hasattr(model, "last")) == (None, 0, {"shapes": []}, False)
    assert (model.recent, model.pair, model.sums.tolist()) == (deque([1]), ([1], []), [1.0, 1.0])
    assert model.key.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(model.adjacency.to_dense(), torch.eye(3))
    assert model.average is average
    assert model.average.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(torch.get_rng_state(), state)


class Frozen(OrderedDict):
    """Refuses changes, as the configurations of some libraries do."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("frozen")


@pytest.mark.parametrize("probe", PROBES)
def test_a_container_that_nothing_changes_is_left_alone(probe: Tensor | None) -> None:
    model = Residual()
    model.config = Frozen(width=8)
    assert find_pairs(model, probe).pairs == RESIDUAL
    assert model.config == {"width": 8}


@pytest.mark.parametrize("keep", [lambda y: y, lambda y: {"maps": [y]}, lambda y: deque([y]), lambda y: (1, {y})])
@pytest.mark.parametrize("probe", PROBES)
def test_an_output_that_an_attribute_keeps_has_another_use(probe: Tensor | None, keep: Callable[[Any], Any]) -> None:
    class Keeping(Wired):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            self.kept = keep(y)
            return self.n(y) + self.m(self.b(x))

    model = nn.Sequential(Keeping(lambda s, x: x))
    pairs, reasons, _, doubt = find_pairs(model, probe)
    assert pairs == {"0.b": "0.m"}
    assert reasons["0.a"] == "its output goes to 0.n, the attribute 0.kept, not to one batch normalisation"
    assert doubt is None
    assert not hasattr(model[0], "kept")


def test_an_attribute_that_holds_itself_ends_the_search() -> None:
    model = Residual()
    model.loop = []
    model.loop.append(model.loop)
    for probe in PROBES:
        assert find_pairs(model, probe).pairs == RESIDUAL


class Conditioned(Wired):
    """Takes a condition, or makes one of the output of a convolution."""

    def forward(self, x: Tensor, condition: Tensor | None = None, *, scale: bool = True) -> Tensor:
        y = self.a(x)
        if condition is None:
            condition = y.mean((2, 3), keepdim=True)
        return self.n(y) + self.m(self.b(x)) + condition


def test_what_calls_with_the_defaults_of_the_forward_pass_do_counts() -> None:
    pairs, reasons, _, doubt = find_pairs(Conditioned(lambda s, x: x))
    assert pairs == {"b": "m"}
    assert reasons["a"] == "its output goes to mean, n, not to one batch normalisation"
    assert doubt is None


def test_defaults_that_the_forward_pass_does_not_run_with_leave_a_doubt() -> None:
    class Demanding(Wired):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            if condition is None:
                raise ValueError("a condition is needed")
            return self.n(self.a(x)) + condition

    pairs, _, _, doubt = find_pairs(Demanding(lambda s, x: x))
    assert pairs == {"a": "n"}
    assert doubt.startswith("the forward pass could not be traced as a whole (Demanding: a condition is needed)")


def test_a_lazy_layer_that_the_probe_initialises_stays_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(2))
    assert find_pairs(model, images(2, 3, 8, 8)).pairs == {"0": "1"}
    assert model(images(2, 3, 8, 8)).shape == (2, 2)


def test_a_probe_of_one_image_is_enough() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    assert find_pairs(model, images(1, 3, 3, 3)) == ({"0": "1"}, {}, set(), None)


def test_what_train_mode_alone_does_counts_with_a_probe() -> None:
    pairs, reasons, _, doubt = find_pairs(
        Wired(lambda s, x: (y := s.a(x), s.n(y), y.square().mean(), s.m(s.b(x))) if s.training else s.n(s.a(x))),
        images(2, 3, 8, 8),
    )
    assert pairs == {"b": "m"}
    assert reasons["a"] == "its output goes to n, square, the output of the model, not to one batch normalisation"
    assert doubt is None


def test_a_probe_that_train_mode_does_not_take_leaves_a_doubt() -> None:
    def detector(model: Wired, x: Tensor) -> Tensor:
        if model.training:
            raise ValueError("targets should not be none when in training mode")
        return model.n(model.a(x))

    pairs, reasons, _, doubt = find_pairs(Wired(detector), images(2, 3, 8, 8))
    assert pairs == {"a": "n"}
    assert doubt.startswith("in train mode the model did not run on the probe (ValueError: targets should not be none")
    assert doubt.endswith("pass a probe on which the model trains")
    assert reasons["b"] == f"the forward pass in eval mode never calls it, and {doubt}"


def test_a_compiled_model_runs_on_a_probe() -> None:
    compiled = torch.compile(Residual(), backend="eager")
    compiled(images(2, 3, 8, 8))
    pairs = find_pairs(compiled, images(2, 3, 8, 8)).pairs
    assert {conv.removeprefix("_orig_mod.") for conv in pairs} == {*RESIDUAL}


@pytest.mark.parametrize("repeated", [nn.ReLU(), nn.BatchNorm2d(3)])
def test_repeated_modules_of_a_sequential_lie_between_its_layers(repeated: nn.Module) -> None:
    convs = [nn.Conv2d(3, 3, 3) for _ in range(2)]
    model = nn.Sequential(convs[0], repeated, convs[1], repeated, nn.BatchNorm2d(3), Untraceable())
    found = find_pairs(model)
    assert found.pairs == {"5.shortcut.0": "5.shortcut.1"}
    assert {"0", "2"} <= found.unpaired.keys()


def test_hooks_go_also_when_the_probe_fails() -> None:
    model = Residual()
    with pytest.raises(RuntimeError, match="expected input"):
        find_pairs(model, images(1, 4, 8, 8))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@dataclass
class Outputs:
    logits: Tensor
    features: Tensor


class ReturnsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Outputs:
        features = self.conv(x)
        return Outputs(self.norm(features).mean((2, 3)), features)


def test_an_output_that_leaves_in_an_object_is_another_use() -> None:
    pairs, unpaired, _, _ = find_pairs(ReturnsFeatures(), torch.randn(2, 3, 6, 6))
    assert pairs == {}
    assert "an object that the model keeps or returns" in unpaired["conv"]
