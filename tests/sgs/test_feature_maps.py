import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from backpass._internal.wrappers import unwrap
from backpass.errors import InputError
from backpass.sgs.feature_maps import FeatureMap, capture_feature_maps, evaluating
from backpass.sgs.layers import scalable_convs


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, (1, 3)))


def captured(model: nn.Module, *inputs: Tensor) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    seen: list[tuple[str, Tensor, tuple[int, ...]]] = []

    def visit(feature_map: FeatureMap) -> None:
        zeros = [count for sides in reversed(feature_map.zeros) for count in sides]
        seen.append((feature_map.layer.name, F.pad(feature_map.values, zeros), feature_map.dilation))

    with capture_feature_maps(list(scalable_convs(model).values()), visit), torch.no_grad():
        for x in inputs:
            model(x)
    return seen


# Which convolutions


def test_kernels_with_an_axis_longer_than_one_in_module_order() -> None:
    layers = scalable_convs(small())
    assert list(layers) == ["0.weight", "3.weight"]
    assert layers["3.weight"].kernel_size == (1, 3)
    assert layers["3.weight"].channels == 4


def test_every_rank_and_subclasses_but_no_transposed_convolution() -> None:
    class Own(nn.Conv2d):
        pass

    model = nn.ModuleList(
        [nn.Conv1d(1, 1, 3), Own(1, 1, 3), nn.Conv3d(1, 1, (1, 1, 2)), nn.ConvTranspose2d(1, 1, 3), nn.Linear(3, 3)]
    )
    assert list(scalable_convs(model)) == ["0.weight", "1.weight", "2.weight"]


def test_a_kernel_that_is_no_parameter_is_left_out() -> None:
    generated, absent, conv = (nn.Conv2d(1, 1, 3) for _ in range(3))
    kernel = generated.weight.detach()
    del generated.weight
    generated.weight = kernel
    absent.weight = None
    assert list(scalable_convs(nn.Sequential(generated, absent, conv))) == ["2.weight"]


def test_a_convolution_alone_is_a_model() -> None:
    assert list(scalable_convs(nn.Conv2d(1, 1, 3))) == ["weight"]


def test_a_shared_module_and_a_shared_kernel_appear_once() -> None:
    conv, twin = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, padding=1)
    twin.weight = conv.weight
    layers = scalable_convs(nn.Sequential(conv, twin, conv))
    assert list(layers) == ["0.weight"]
    assert layers["0.weight"].modules == (conv, twin)


def test_a_shared_kernel_on_other_channels_is_refused() -> None:
    conv, twin = nn.Conv2d(4, 2, 3), nn.Conv2d(8, 2, 3, groups=2)
    twin.weight = conv.weight
    with pytest.raises(InputError, match=r"^1 shares 0\.weight but sees 8 channels, not 4"):
        scalable_convs(nn.Sequential(conv, twin))


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (["0"], ["0.weight"]),
        ("[03]", ["0.weight", "3.weight"]),
        (lambda name, module: module.in_channels == 4, ["3.weight"]),
        (lambda name, module: name != "3", ["0.weight"]),
    ],
)
def test_include(include: list[str] | str | Callable[[str, nn.Module], bool], expected: list[str]) -> None:
    assert list(scalable_convs(small(), include)) == expected


def test_nothing_to_scale() -> None:
    with pytest.raises(
        InputError, match=r"expected at least one Conv1d, .* found no convolution to scale in Linear; give"
    ):
        scalable_convs(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"kernel axis longer than 1 that include=<function .* selects"):
        scalable_convs(small(), lambda name, module: False)


def test_patterns_that_match_nothing_are_refused() -> None:
    for include in (["layer9.*"], ["0", "layer9.*"], "layer9.*"):
        with pytest.raises(InputError, match=r"pattern 'layer9\.\*' of include matches none .*: 0, 3; correct it"):
            scalable_convs(small(), include)
    with pytest.raises(InputError, match="there are none"):
        scalable_convs(nn.Linear(2, 2), ["0"])


def old_weight_norm(conv: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(conv)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (parametrizations.weight_norm, "0.parametrizations.weight.original1"),
        (parametrizations.spectral_norm, "0.parametrizations.weight.original"),
        (old_weight_norm, "0.weight_v"),
        (torch.nn.utils.spectral_norm, "0.weight_orig"),
        (lambda conv: prune.l1_unstructured(conv, "weight", amount=0.5), "0.weight_orig"),
    ],
)
def test_reparametrised_kernels_are_keyed_by_the_parameter_of_the_kernels_shape(
    wrap: Callable[[nn.Module], nn.Module], name: str
) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3, padding=1)))
    (layer,) = scalable_convs(model).values()
    assert layer.name == name
    assert name in dict(model.named_parameters())
    assert layer.parameter.shape == (4, 3, 3, 3)
    (seen,) = captured(model, torch.ones(1, 3, 4, 4))
    assert seen[1].shape == (1, 3, 6, 6)


def test_wrappers_are_looked_through_and_leave_no_prefix() -> None:
    model = small()
    compiled = torch.compile(model, backend="eager")
    assert unwrap(nn.DataParallel(compiled)) is model
    assert list(scalable_convs(compiled)) == ["0.weight", "3.weight"]
    partly = nn.Sequential(torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), backend="eager"))
    assert list(scalable_convs(partly)) == ["0.0.weight"]


# What they see


def test_the_map_is_padded_as_the_convolution_pads_it() -> None:
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    (seen,) = captured(nn.Conv2d(3, 4, (3, 2), padding=(2, 0), dilation=(2, 3), stride=2), x)
    assert seen[0] == "weight"
    assert torch.equal(seen[1], F.pad(x, (0, 0, 2, 2)))
    assert seen[2] == (2, 3)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_same_padding_puts_the_odd_pixel_behind() -> None:
    x = torch.ones(1, 1, 4, 4)
    (seen,) = captured(nn.Conv2d(1, 1, (4, 2), padding="same"), x)
    assert torch.equal(seen[1], F.pad(x, (0, 1, 1, 2)))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode: str) -> None:
    x = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    (seen,) = captured(nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode=mode), x)
    assert torch.equal(seen[1], F.pad(x, (2, 2, 1, 1), mode=mode))


def test_unbatched_input_and_half_precision_become_a_float32_batch() -> None:
    (seen,) = captured(nn.Conv1d(2, 2, 3, padding=1).bfloat16(), torch.ones(2, 5, dtype=torch.bfloat16))
    assert seen[1].shape == (1, 2, 7)
    assert seen[1].dtype == torch.float32


def test_a_subclass_that_pads_in_its_forward() -> None:
    class CausalConv(nn.Conv1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(F.pad(input, (4, 0)))

    x = torch.ones(1, 1, 6)
    (seen,) = captured(CausalConv(1, 1, 3, dilation=2), x)
    assert torch.equal(seen[1], F.pad(x, (4, 0)))
    assert seen[2] == (2,)


def test_every_call_of_a_layer_is_seen_under_its_own_name() -> None:
    conv, twin = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=2, dilation=2)
    twin.weight = conv.weight
    model = nn.Sequential(conv, nn.Conv2d(2, 2, 3, padding=1), twin, conv)
    seen = captured(model, torch.ones(1, 2, 4, 4))
    assert [(name, dilation) for name, _, dilation in seen] == [
        ("0.weight", (1, 1)),
        ("1.weight", (1, 1)),
        ("0.weight", (2, 2)),
        ("0.weight", (1, 1)),
    ]


def test_other_convolutions_inside_a_watched_one_are_not_its_own() -> None:
    class Gated(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(2, 2, 3, padding=1)
            self.gate = nn.Conv2d(2, 2, 1)

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input * self.gate(input))

    assert [name for name, _, _ in captured(Gated(), torch.ones(1, 2, 4, 4))] == ["weight"]


def hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_hooks_leave_also_after_an_exception() -> None:
    model = small()

    def visit(*_: object) -> None:
        assert sum(hooks(model)) == 4
        raise KeyError("visitor")

    with pytest.raises(KeyError, match="visitor"), capture_feature_maps(list(scalable_convs(model).values()), visit):
        model(torch.ones(2, 3, 5, 5))
    assert sum(hooks(model)) == 0


def test_a_failing_pre_hook_of_someone_else_is_reported_as_it_is() -> None:
    model = small()

    def fail(*_: object) -> None:
        raise ValueError("theirs")

    handle = model[0].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="theirs"):
        captured(model, torch.ones(1, 3, 5, 5))
    handle.remove()
    assert len(captured(model, torch.ones(2, 3, 5, 5))) == 2


# The model comes back


class Restless(nn.Module):
    """Changes everything it can in its eval forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mutated", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("absent", None)
        self.norm = nn.BatchNorm2d(3)
        self.norm.train()

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.mutated, Tensor)
        assert not self.norm.training
        self.mutated += torch.rand(2)
        self.replaced = torch.rand(2)
        self.absent = torch.rand(2)
        self.register_buffer("added", torch.rand(2))
        self.norm.num_batches_tracked += 1
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_modes_buffers_and_random_state_come_back(fails: bool) -> None:
    model = nn.Sequential(Restless(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)), small())
    model.train()
    model[1][0].eval()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    identities = {name: (id(b), b._version) for name, b in model.named_buffers()}
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def use() -> None:
        with evaluating(model) as untouched:
            assert untouched()
            assert not any(m.training for m in model.modules())
            assert not torch.is_grad_enabled()
            model[0](torch.ones(1, 3, 2, 2))
            assert model[0].mutated.sum() > 0
            assert not torch.equal(torch.get_rng_state(), random_state)
            if fails:
                raise KeyError("inside")

    if fails:
        with pytest.raises(KeyError, match="inside"):
            use()
    else:
        use()
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    restored = model.state_dict()
    assert list(restored) == list(state)
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert {name: id(b) for name, b in model.named_buffers()} == {name: i for name, (i, _) in identities.items()}
    untouched = [name for name in identities if not name.startswith("0.")]
    assert all(dict(model.named_buffers())[name]._version == identities[name][1] for name in untouched)
    assert model[0].absent is None
