import copy
import gc
import warnings
import weakref
from collections import UserDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("numpy")
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from backpass.errors import InputError, StateError
from backpass.sgs import SpatialGradientScaling, kept_maps, measure_scalings, measuring
from backpass.sgs.dependence import MutualInformation
from backpass.sgs.feature_maps import FeatureMap
from backpass.sgs.histogram import Zeros
from backpass.sgs.layers import scalable_convs
from reference import mutual_information as slow

GOLDEN = np.load(Path(__file__).parents[1] / "reference" / "golden_sgs.npz")
CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 3, 3, padding=1)
    )


def scalings(model: nn.Module, batches: Sequence[Any], **options: Any) -> dict[str, Tensor]:
    return measure_scalings(model, batches, **options).scalings


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# Against the slow reference and the published estimator


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    axes = draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 4 if axes < 3 else 3)] * axes).filter(lambda k: max(k) > 1))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * axes))
    groups, per_group, width = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    stride: tuple[int, ...] | int
    if draw(st.booleans()):
        padding: str | tuple[int, ...] = draw(st.sampled_from(["same", "valid"]))
        stride = 1
    else:
        padding, stride = draw(st.tuples(*[st.integers(0, 2)] * axes)), draw(st.integers(1, 3))
    return CONVS[axes](
        groups * per_group,
        groups * width,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@example(conv=nn.Conv1d(1, 1, 2, stride=2), batch=1, extra=0, k=1.0, kind=("mutual_information", False), seed=0)
@given(
    conv=convolutions(),
    batch=st.integers(1, 2),
    extra=st.integers(0, 2),
    k=st.floats(0.5, 20),
    kind=st.sampled_from([("mutual_information", False), ("mutual_information", True), ("autocorrelation", False)]),
    seed=st.integers(0, 10**6),
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_update_equals_the_slow_reference(
    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, batch: int, extra: int, k: float, kind: tuple[str, bool], seed: int
) -> None:
    measure, drop = kind
    reach = [d * (size - 1) + 1 for d, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    spatial = [max(r, 3) + extra for r in reach]  # reflecting by two needs three pixels
    x = noise(2 * batch, conv.in_channels, *spatial, seed=seed)
    x[:, 0] = x[:, 0].relu()
    # Patchifying kernels, even and as wide as their stride, are measured when they are included.
    sgs = SpatialGradientScaling(conv, k=k, measure=measure, drop_near_equal=drop, include=["*"])  # type: ignore[arg-type]
    sgs.update(x.split(batch))
    expected = slow.conv_scaling(
        [part.numpy() for part in x.split(batch)],
        conv.kernel_size,
        padding=conv.padding,
        padding_mode=conv.padding_mode,
        dilation=conv.dilation,
        k=k,
        measure=measure,
        drop_near_equal=drop,
    )
    np.testing.assert_allclose(sgs.scalings["weight"].numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", range(5))
def test_update_equals_the_published_estimator(case: int) -> None:
    kh, kw, ph, pw, k = GOLDEN[f"meta{case}"].tolist()
    x = torch.from_numpy(GOLDEN[f"x{case}"])
    conv = nn.Conv2d(x.shape[1], 2, (int(kh), int(kw)), padding=(int(ph), int(pw)))
    g = scalings(conv, x.split(3), k=k)["weight"]
    np.testing.assert_allclose(g.numpy(), GOLDEN[f"G{case}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("drop_near_equal", [False, True])
def test_dilation_that_is_ignored(drop_near_equal: bool) -> None:
    """The published estimator compares pixels one apart, on the map with the zeros that the dilated layer adds."""
    x = noise(2, 3, 7, 8).relu()
    dilated, plain = nn.Conv2d(3, 2, 3, padding=2, dilation=(2, 1)), nn.Conv2d(3, 2, 3, padding=2)
    ignored = scalings(dilated, [x], drop_near_equal=drop_near_equal, dilation="ignored")
    assert_same(ignored, scalings(plain, [x], drop_near_equal=drop_near_equal))
    assert not torch.allclose(ignored["weight"], scalings(dilated, [x], drop_near_equal=drop_near_equal)["weight"])


def test_depthwise_sees_every_channel() -> None:
    x = noise(2, 6, 5, 5)
    depthwise = scalings(nn.Conv2d(6, 6, 3, padding=1, groups=6), [x])
    assert_same(depthwise, scalings(nn.Conv2d(6, 1, 3, padding=1), [x]))


def test_shared_and_repeated_layers_gather_every_call() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x[:1])
            return self.conv(x[1:] * 2)

    x = noise(2, 2, 6, 6)
    expected = slow.conv_scaling([x[:1].numpy(), 2 * x[1:].numpy()], (3, 3), padding=(1, 1), dilation=(1, 1))
    np.testing.assert_allclose(scalings(Twice(), [x])["conv.weight"].numpy(), expected, rtol=0, atol=1e-6)


def test_unbatched_and_half_precision_input() -> None:
    x = noise(2, 6, 6).bfloat16()
    conv = nn.Conv2d(2, 2, 3, padding=1)
    expected = scalings(conv, [x[None].float()])
    assert_same(scalings(conv, [x.float()]), expected)
    assert_same(scalings(conv.bfloat16(), [x]), expected)


# Batches


def test_any_split_in_batches_gives_bitwise_the_same_scalings() -> None:
    model, x = net(), noise(12, 2, 8, 8)
    whole = scalings(model, [x])
    for split in (1, 5, [2, 7, 3]):
        assert_same(scalings(model, x.split(split)), whole)
    assert not torch.equal(scalings(model, [x[:6]])["0.weight"], whole["0.weight"])


class InPlace(nn.Module):
    """Normalises its input in place, as some models do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.5).div_(0.25))


def test_a_model_that_writes_to_its_input_leaves_the_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = InPlace(), noise(4, 2, 8, 8)
    expected = scalings(model.net, [(x - 0.5) / 0.25])
    monkeypatch.setattr(kept_maps, "KEPT_BYTES", 0)
    before = x.clone()
    measured = scalings(model, [x])
    assert_same({name.removeprefix("net."): scaling for name, scaling in measured.items()}, expected)
    assert torch.equal(x, before)


class Pair(tuple):
    """A batch with a constructor of its own, which nothing here may call."""

    def __new__(cls, x: Tensor, y: Tensor) -> "Pair":
        return super().__new__(cls, (x, y))


def normalised(batch: dict[str, Tensor]) -> Tensor:
    batch["x"] = batch["x"] / 0.25
    return batch["x"]


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_what_a_forward_writes_to_its_batch_is_not_there_the_next_time(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_maps, "KEPT_BYTES", kept)
    model, x = net(), noise(4, 2, 8, 8)
    expected = scalings(model, [x / 0.25])
    assert_same(scalings(model, [{"x": x}], forward=lambda batch: model(normalised(batch))), expected)
    assert_same(scalings(model, [UserDict(x=x)], forward=lambda batch: model(normalised(batch))), expected)
    assert_same(scalings(model, [[x, x]], forward=lambda batch: model(batch[0].div_(0.25))), expected)
    assert_same(scalings(model, [Pair(x, x)], forward=lambda batch: model(batch[0] / 0.25)), expected)


def test_a_lazy_normalisation_is_measured_with_its_first_batch() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(3, 3, 3))
    assert scalings(model, [noise(4, 2, 8, 8)]).keys() == {"0.weight", "3.weight"}


def test_forms_of_batches() -> None:
    model, x = net(), noise(4, 2, 8, 8)
    expected = scalings(model, [x])
    labels = torch.zeros(4)
    assert_same(scalings(model, [(x, labels)]), expected)
    assert_same(scalings(model, [[x, labels]]), expected)
    assert_same(scalings(model, DataLoader(TensorDataset(x, labels), batch_size=2)), expected)  # type: ignore[arg-type]
    assert_same(scalings(model, (part for part in x.split(2))), expected)  # type: ignore[arg-type]
    assert_same(scalings(model, [{"image": x}], forward=lambda batch: model(batch["image"])), expected)


@pytest.mark.parametrize(("kept", "reads"), [(1 << 20, 4), (0, 8)])
def test_a_sequence_is_read_when_needed_and_never_held(kept: int, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_maps, "KEPT_BYTES", kept)

    class Lazy(Sequence[Tensor]):
        alive: list[weakref.ref[Tensor]]

        def __init__(self) -> None:
            self.alive = []
            self.most = 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: Any) -> Tensor:
            if index >= 4:
                raise IndexError
            x = noise(2, 2, 8, 8, seed=index)
            self.alive.append(weakref.ref(x))
            self.most = max(self.most, sum(ref() is not None for ref in self.alive))
            return x

    batches = Lazy()
    scalings(net(), batches)
    assert len(batches.alive) == reads
    assert batches.most <= 2  # the one that the loop variable still names, and the next


def test_no_feature_map_outlives_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_maps, "KEPT_BYTES", 0)
    maps: list[weakref.ref[Tensor]] = []
    most = 0

    class Watched(MutualInformation):
        def observe(self, feature_map: Tensor, dilation: Sequence[int], zeros: Zeros | None = None) -> None:
            nonlocal most
            super().observe(feature_map, dilation, zeros)
            maps.append(weakref.ref(feature_map))
            most = max(most, sum(ref() is not None for ref in maps))

    monkeypatch.setitem(measuring.MEASURES, "mutual_information", Watched)
    scalings(net(), noise(12, 2, 8, 8).split(2))
    gc.collect()
    assert len(maps) == 12
    assert most <= 2
    assert all(ref() is None for ref in maps)


class Residual(nn.Module):
    """Uses a convolution twice and overwrites what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3)
        self.last = nn.Conv2d(4, 3, 3, padding=1, dilation=2)
        self.runs: list[str] = []
        for name in ("stem", "conv", "last"):
            getattr(self, name).register_forward_hook(lambda *_, name=name: self.runs.append(name))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(x)
        x.relu_()
        y = y + self.conv(x)
        output: Tensor = self.last(y)
        y.zero_()
        return output


ALL = ["stem", "conv", "conv", "last"]
ONE_IMAGE = 512 + 1024 + 1024 + 576  # bytes of its maps


@pytest.mark.parametrize(
    ("kept", "batches", "run_again"),
    [
        (0, [1, 1], 2),
        (ONE_IMAGE - 1, [1, 1], 2),
        (ONE_IMAGE, [1, 1], 1),
        (2 * ONE_IMAGE, [1, 1], 0),
        (3 * ONE_IMAGE, [1, 9, 2], 2),
        (2 * ONE_IMAGE, [9, 1, 2], 3),
        (10 * ONE_IMAGE, [1, 9, 2], 1),
    ],
)
def test_only_batches_whose_maps_were_not_kept_run_again(
    kept: int, batches: list[int], run_again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [noise(size, 2, 8, 8, seed=number) for number, size in enumerate(batches)]
    monkeypatch.setattr(kept_maps, "KEPT_BYTES", 0)
    want = scalings(Residual(), [torch.cat(images)])
    monkeypatch.setattr(kept_maps, "KEPT_BYTES", kept)
    model = Residual()
    assert_same(scalings(model, images), want)
    assert model.runs == (len(batches) + run_again) * ALL
    assert not model.conv._forward_pre_hooks


def test_kept_maps_are_freed_one_by_one() -> None:
    kept = kept_maps.KeptMaps()
    (layer,) = scalable_convs(nn.Conv2d(1, 1, 3)).values()
    visit = kept.keeping(0, lambda feature_map: None)
    for _ in range(3):
        visit(FeatureMap(layer, torch.ones(1, 1, 4, 4), ((0, 0), (0, 0)), (1, 1)))
    refs = [weakref.ref(feature_map) for feature_map in kept._maps[0]]
    alive = []
    for _ in kept.take(0):
        gc.collect()
        alive.append(sum(ref() is not None for ref in refs))
    assert alive == [3, 2, 1]
    assert 0 not in kept


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "expected at least one measuring batch, got none"),
        (iter(()), "expected at least one measuring batch, got none"),
        (torch.zeros(2, 2, 8, 8), r"an iterable of batches, got one tensor of shape \(2, 2, 8, 8\); pass \[batch\]"),
        ([torch.zeros(0, 2, 8, 8)], r"expected a non-empty batch, got shape \(0, 2, 8, 8\)"),
        (
            [{"image": torch.zeros(1)}],
            r"or a tuple that starts with one, got dict with keys 'image'; pass forward=",
        ),
        ([("name", torch.zeros(1))], r"got tuple of str, tensor of shape \(1,\)"),
        ([()], "got tuple of nothing"),
        (
            [torch.zeros(1, 2, 8, 8), torch.zeros(1, 5, 8, 8)],
            r"failed on measuring batch 1 \(tensor of shape \(1, 5, 8, 8\)\): .*expected input.* to have 2 channels.*"
            r"pass forward=\.\.\. for batches of another form",
        ),
    ],
)
def test_batches_that_cannot_be_measured(batches: Any, message: str) -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    with pytest.raises(InputError, match=message):
        sgs.update(batches)
    assert all(torch.equal(g, torch.ones(3, 3)) for g in sgs.scalings.values())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Degenerate inputs


def test_constant_channels_do_not_count() -> None:
    x = noise(2, 3, 8, 8)
    x[:, 1] = 0.3
    conv = nn.Conv2d(3, 1, 3)
    assert_same(scalings(conv, [x]), scalings(nn.Conv2d(2, 1, 3), [x[:, [0, 2]]]))
    assert not torch.equal(scalings(conv, [x])["weight"], torch.ones(3, 3))


@pytest.mark.parametrize("measure", ["mutual_information", "autocorrelation"])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_layer_without_signal_gets_ones(measure: str, value: float) -> None:
    x = torch.full((2, 3, 8, 8), value)
    (g,) = scalings(nn.Conv2d(3, 1, 3), [x], measure=measure).values()
    assert torch.equal(g, torch.ones(3, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_layer_with_non_finite_input_keeps_its_scaling_and_is_named_once(bad: float) -> None:
    class Break(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x == x.max(), bad, x)

    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), Break(), nn.Conv2d(2, 2, 3, padding=1))
    sgs = SpatialGradientScaling(model)
    kept = torch.linspace(0.6, 1.4, 9).view(3, 3)
    sgs.scalings["2.weight"].copy_(kept)
    expected = r"^found NaN or infinity in the input of 2\.weight, which keeps its scaling$"
    with pytest.warns(UserWarning, match=expected) as warned:
        sgs.update([noise(2, 2, 6, 6)])
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert torch.equal(sgs.scalings["2.weight"], kept)
    assert not torch.equal(sgs.scalings["0.weight"], torch.ones(3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgs.update([noise(2, 2, 6, 6)])


def test_a_layer_is_named_for_each_reason() -> None:
    sgs = SpatialGradientScaling(nn.Conv2d(1, 1, 3))
    with pytest.warns(UserWarning, match="no measuring batch reached weight"):
        sgs.update([torch.ones(1, 1, 8, 8)], forward=lambda batch: None)
    with pytest.warns(UserWarning, match="found NaN or infinity in the input of weight"):
        sgs.update([torch.full((1, 1, 8, 8), torch.nan)])


def test_unreached_layers_keep_their_scaling_and_are_named() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    sgs = SpatialGradientScaling(Partial())
    with pytest.warns(UserWarning, match=r"^no measuring batch reached unused\.weight, which keeps its scaling$"):
        sgs.update([noise(2, 2, 6, 6)])
    assert torch.equal(sgs.scalings["unused.weight"], torch.ones(3, 3))
    assert not torch.equal(sgs.scalings["used.weight"], torch.ones(3, 3))


class RegionHead(nn.Module):
    """Runs a head on those images alone in which something is found, like the mask head of Mask R-CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.head(self.body(x)[x.amax((1, 2, 3)) > 0])
        return kept


@pytest.mark.parametrize("options", [{}, {"drop_near_equal": True}, {"measure": "autocorrelation"}])
def test_an_empty_feature_map_counts_as_none(options: dict[str, Any]) -> None:
    found, nothing = noise(2, 2, 6, 6), -noise(2, 2, 6, 6).abs()
    torch.manual_seed(0)
    model = RegionHead()
    sgs = SpatialGradientScaling(model, **options)
    with pytest.warns(UserWarning, match=r"^no measuring batch reached head\.weight, which keeps its scaling$"):
        sgs.update([nothing])
    assert torch.equal(sgs.scalings["head.weight"], torch.ones(3, 3))
    assert not torch.equal(sgs.scalings["body.weight"], torch.ones(3, 3))
    sgs.update([nothing, found])
    head = SpatialGradientScaling(model.head, **options)
    head.update([model.body(found).detach()])
    assert torch.equal(sgs.scalings["head.weight"], head.scalings["weight"])


class Slimmable(nn.Conv2d):
    """Uses as much of its kernel as its input has channels."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, self.weight[:, : input.shape[1]], self.bias, padding=1)


def test_a_layer_that_sees_a_part_of_its_channels_is_measured_where_it_sees_all() -> None:
    torch.manual_seed(0)
    sgs = SpatialGradientScaling(Slimmable(4, 2, 3))
    part, whole = noise(2, 2, 6, 6), noise(2, 4, 6, 6)
    with pytest.warns(UserWarning, match=r"^no measuring batch reached weight, which keeps its scaling$"):
        sgs.update([part])
    assert torch.equal(sgs.scalings["weight"], torch.ones(3, 3))
    sgs.update([part, whole])
    expected = scalings(nn.Conv2d(4, 2, 3, padding=1), [whole])
    assert torch.equal(sgs.scalings["weight"], expected["weight"])


# The model


class NoisyInEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.calls, Tensor)
        self.calls += 1
        return x + torch.rand_like(x) + self.calls


def test_both_passes_see_the_same_maps_of_a_model_that_draws_random_numbers() -> None:
    seen: list[Tensor] = []
    conv = nn.Conv2d(2, 1, 3)
    conv.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    model = nn.Sequential(NoisyInEval(), conv)
    scalings(model, [torch.zeros(2, 2, 6, 6)] * 2)
    first, second, again, once_more = seen
    assert torch.equal(first, again)
    assert torch.equal(second, once_more)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("fails", [False, True])
def test_update_leaves_no_trace_on_the_model(fails: bool) -> None:
    model = nn.Sequential(NoisyInEval(), net()).train()
    model[1][1].eval()
    user_hook = model[1][0].register_forward_hook(lambda *_: None)
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batches = [noise(2, 2, 6, 6), noise(2, 5 if fails else 2, 6, 6)]
    if fails:
        with pytest.raises(InputError, match="measuring batch 1"):
            SpatialGradientScaling(model).update(batches)
    else:
        SpatialGradientScaling(model).update(batches)
    assert [m.training for m in model.modules()] == modes
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    user_hook.remove()


def test_drawing_from_a_loader_leaves_the_random_state_alone() -> None:
    loader = DataLoader(TensorDataset(noise(4, 2, 8, 8)), batch_size=2, shuffle=True)
    model = net()
    before = torch.get_rng_state()
    scalings(model, loader)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    next(iter(loader))
    assert not torch.equal(torch.get_rng_state(), before)


class Net(nn.Sequential):
    """A model with a forward of its own: torch 2.6 compiles no forward of torch's own in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def compiled_whole(model: nn.Sequential, backend: Any) -> nn.Module:
    return torch.compile(model, backend=backend)  # type: ignore[return-value]


def compiled_in_place(model: nn.Sequential, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


def compiled_in_part(model: nn.Sequential, backend: Any) -> nn.Module:
    model[4] = torch.compile(model[4], backend=backend)
    return model


@pytest.mark.parametrize("how", [compiled_whole, compiled_in_place, compiled_in_part])
def test_a_compiled_model_is_measured_eagerly(how: Any) -> None:
    compilations = 0

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    torch._dynamo.reset()
    x = noise(4, 2, 8, 8)
    expected = scalings(net(), [x])
    model = how(Net(*net()), backend)
    assert_same(scalings(model, [x]), expected)
    assert compilations == 0
    with torch.no_grad():
        model.eval()(x)
    assert compilations > 0
    assert_same(scalings(model, [x]), expected)


def test_models_in_float64_and_under_autocast() -> None:
    x = noise(4, 2, 8, 8)
    expected = scalings(net(), [x])
    torch.testing.assert_close(scalings(net().double(), [x.double()]), expected, atol=1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = scalings(net(), [x])
    torch.testing.assert_close(under_autocast["4.weight"], expected["4.weight"], atol=0.1, rtol=0)


def test_settings_reach_the_measure() -> None:
    model, x = net(), noise(4, 2, 8, 8).relu()
    plain = scalings(model, [x])["0.weight"]
    for options in ({"k": 2.0}, {"measure": "autocorrelation"}, {"drop_near_equal": True}):
        assert not torch.allclose(scalings(model, [x], **options)["0.weight"], plain)


def test_padding_counts_as_data() -> None:
    """The zeros around a map share information among themselves: documented, and a large effect on small maps."""
    x = noise(16, 2, 2, 2)
    (g,) = scalings(nn.Conv2d(2, 1, 3, padding=1), [x]).values()
    (expected,) = scalings(nn.Conv2d(2, 1, 3), [F.pad(x, (1, 1, 1, 1))]).values()
    assert torch.equal(g, expected)


def test_every_layer_is_reported_or_scaled() -> None:
    def stream() -> Iterator[Tensor]:
        yield noise(2, 2, 6, 6)

    measured = measure_scalings(net(), stream())
    assert list(measured.scalings) == ["0.weight", "4.weight"]
    assert measured.unreached == measured.not_finite == ()
    for g in measured.scalings.values():
        assert g.dtype == torch.float32
        assert g.mean().item() == pytest.approx(1, abs=1e-6)
        assert bool((g > 0).all())


class MergedInEvalMode(nn.Conv2d):
    """Like a low-rank update that is merged into the kernel in eval mode."""

    merged = False

    def train(self, mode: bool = True) -> nn.Module:
        if self.merged == mode:
            self.weight.data *= 0.5 if mode else 2
            self.merged = not mode
        return super().train(mode)


def test_a_module_that_changes_with_its_mode_comes_back_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(MergedInEvalMode(3, 4, 3), nn.Sequential(MergedInEvalMode(4, 4, 3).eval(), nn.Dropout()))
    kernels = {name: parameter.clone() for name, parameter in model.named_parameters()}
    measure_scalings(model, [torch.randn(4, 3, 8, 8)])
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert [model[0].merged, model[1][0].merged] == [False, True]
    assert all(torch.equal(parameter, kernels[name]) for name, parameter in model.named_parameters())


def test_what_cannot_be_measured_is_refused() -> None:
    model = nn.Conv2d(1, 1, 3, device="meta")
    with pytest.raises(StateError, match=r"got weight on the meta device; materialise it"):
        measure_scalings(model, [torch.zeros(1, 1, 4, 4, device="meta")])
    with pytest.raises(InputError, match="at least one layer to measure, got none"):
        measure_scalings(nn.Conv2d(1, 1, 3), [torch.zeros(1, 1, 4, 4)], {})
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module, got list; pass the model itself"):
        scalable_convs([model])  # type: ignore[arg-type]


def test_complex_kernels_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, dtype=torch.complex64), nn.Conv2d(1, 1, 3))
    assert list(scalable_convs(model)) == ["1.weight"]
