"""The registry of models: builders by name, and the models of timm."""

from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, TypeVar

from torch import nn

from backpass._internal.imports import call_object, check_call, import_lab, is_import_path
from backpass.errors import InputError

__all__ = ["create_model", "list_models", "register_model"]

TIMM_PREFIX = "timm/"

_builders: dict[str, Callable[..., nn.Module]] = {}

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def register_model(builder: Builder) -> Builder:
    """Register ``builder`` under its own name and return it unchanged; use it as a decorator.

    Args:
        builder: a function returning a new model, with at least the keyword arguments ``num_classes`` and
            ``in_channels``, both with defaults.

    Raises:
        InputError: the name is taken.

    >>> @register_model
    ... def resnet18(num_classes: int = 2, in_channels: int = 3) -> nn.Module:
    ...     return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
    Traceback (most recent call last):
    backpass.errors.InputError: expected a new name, got 'resnet18', which has a model already; rename the builder
    """
    name = builder.__name__
    if name in _builders:
        raise InputError(f"expected a new name, got {name!r}, which has a model already; rename the builder")
    _builders[name] = builder
    return builder


def list_models(pattern: str | None = None) -> list[str]:
    """Return the sorted names that :func:`create_model` accepts.

    Args:
        pattern: keep the names that match this shell pattern. A pattern that starts with ``timm/`` lists timm's
            models instead, which are not listed otherwise.

    Raises:
        MissingExtraError: the pattern starts with ``timm/`` and timm is not installed.

    >>> list_models("pyramidnet*")
    ['pyramidnet110_a270', 'pyramidnet110_a48', 'pyramidnet110_a84']
    """
    if pattern is not None and pattern.startswith(TIMM_PREFIX):
        names = [TIMM_PREFIX + name for name in _import_timm().list_models()]
    else:
        names = list(_builders)
    return sorted(name for name in names if pattern is None or fnmatchcase(name, pattern))


def create_model(name: str, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """Return a new model with freshly drawn weights.

    Args:
        name: one of :func:`list_models`, ``timm/NAME`` for ``timm.create_model(NAME)``, or the import path of a
            function of your own, ``package.module:function``, which takes ``num_classes`` and ``in_channels``.
        num_classes: number of logits. The default is the model's own: 100 for the CIFAR models, 1000 for the
            ImageNet models and timm's, 10 for ``digits_net``, 19 for PSPNet, 16 for the pose nets.
        **kwargs: further arguments of the builder or of timm's model, such as ``zero_init_last=False`` for timm's
            ResNets. Every model takes ``in_channels``, timm's as well.

    Raises:
        InputError: the name is unknown, ``num_classes`` or ``in_channels`` is not a positive integer, or the model
            has no argument of a given name.
        MissingExtraError: the name starts with ``timm/`` and timm is not installed.

    >>> create_model("digits_net", num_classes=3).fc
    Linear(in_features=64, out_features=3, bias=True)
    """
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    for key in kwargs.keys() & {"num_classes", "in_channels"}:
        value = kwargs[key]
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(
                f"expected {key} of {name!r} to be a positive integer, got {value!r}; choose another number"
            )
        kwargs[key] = int(value)
    if name.startswith(TIMM_PREFIX):
        return _create_timm_model(name, kwargs)
    if name not in _builders and is_import_path(name):
        return _create_own_model(name, kwargs)
    if name not in _builders:
        raise _unknown_model(name, list(_builders), listing="backpass.models.list_models()")
    check_call(_builders[name], name, kwargs)
    return _builders[name](**kwargs)


def _create_own_model(path: str, kwargs: dict[str, Any]) -> nn.Module:
    model = call_object(path, "model", kwargs)
    if not isinstance(model, nn.Module):
        raise InputError(f"expected {path!r} to return a torch.nn.Module, got {type(model).__name__}; return the model")
    return model


def _create_timm_model(name: str, kwargs: dict[str, Any]) -> nn.Module:
    timm = _import_timm()
    timm_name = name.removeprefix(TIMM_PREFIX)
    # A colon marks a model from a hub, which timm looks up elsewhere than in its own table.
    if ":" not in timm_name and not timm.is_model(timm_name):
        known = [TIMM_PREFIX + known_name for known_name in timm.list_models()]
        raise _unknown_model(name, known, listing="backpass.models.list_models('timm/*')")
    if "in_channels" in kwargs:
        kwargs["in_chans"] = kwargs.pop("in_channels")
    try:
        model: nn.Module = timm.create_model(timm_name, **kwargs)
    except Exception as error:  # timm raises errors of every kind, and those of its sources (hubs, folders).
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise InputError(
            f"expected a model that timm builds as {timm_name!r} with {given or 'no arguments'}, got "
            f"{type(error).__name__}: {error}; change the arguments or choose another model"
        ) from error
    return model


def _unknown_model(name: str, known: list[str], listing: str) -> InputError:
    matches = get_close_matches(name, known, n=5)
    hint = f"; close names: {', '.join(matches)}" if matches else ""
    return InputError(f"unknown model {name!r}{hint}; {listing} lists all names")


def _import_timm() -> Any:
    return import_lab("timm", "timm", "models named timm/...")
