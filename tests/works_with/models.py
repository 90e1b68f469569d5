"""Kinds of layers and models."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from battery.loop import CLASSES, Loop, net
from works_with.case import Case
from works_with.rows import loop


def cases() -> list[Case]:
    """Return the cases of layers."""
    convolutions: dict[str, Callable[[], nn.Module]] = {
        "`Conv1d`": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 5, padding=2), _head(4 * 64)),
        "`Conv3d`": lambda: nn.Sequential(
            nn.Unflatten(1, (3, 1)), nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)), _head(256)
        ),
        "groups, depthwise": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), _head(6 * 64)),
        "stride, dilation": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2), _head(64)),
        "circular, reflected padding": lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            _head(256),
        ),
        "a kernel that layers share": shared,
        "lazy layers, after a first batch": lambda: nn.Sequential(
            nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(CLASSES)
        ),
    }
    changed: dict[str, Callable[[nn.Module], object]] = {
        "weight norm": parametrizations.weight_norm,
        "spectral norm": parametrizations.spectral_norm,
        "pruning": lambda conv: prune.l1_unstructured(conv, "weight", amount=0.3),
    }
    return [
        *(loop(name, Loop(build=build, first_batch="lazy" in name)) for name, build in convolutions.items()),
        *(loop(name, Loop(build=_changed(change))) for name, change in changed.items()),
    ]


def _head(features: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, CLASSES))


def shared() -> nn.Module:
    """Return a model in which one kernel serves three times."""
    conv, twin = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    twin.weight = conv.weight
    return nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), twin, _head(3 * 64))


def _changed(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = net()
        torch.manual_seed(0)
        change(model[0])
        return model

    return build


def architectures() -> list[Case]:
    """Return the cases of models of other libraries."""

    larger = nn.Upsample(scale_factor=4)

    def of_timm(name: str) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=CLASSES)
        return nn.Sequential(larger, model)

    def of_torchvision(name: str) -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES)
        return nn.Sequential(larger, model)

    names = {
        **{f"timm `{name}`": (of_timm, name) for name in ("resnet10t", "mobilenetv3_small_050", "convnext_atto")},
        **{f"torchvision `{name}`": (of_torchvision, name) for name in ("resnet18", "shufflenet_v2_x0_5")},
    }
    return [
        loop(name, Loop(build=lambda make=make, model=model: make(model), steps=1))
        for name, (make, model) in names.items()
    ]
