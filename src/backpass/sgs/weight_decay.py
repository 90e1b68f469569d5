"""What an optimizer's decoupled weight decay multiplies the parameters with in a step."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from backpass.errors import InputError
from backpass.sgs.optimizers import is_called, stepping_optimizer

__all__ = ["decay_factor"]

_SAID_BY = ("decoupled_weight_decay", "weight_decouple", "decoupled_decay", "decoupled")  # keys of groups
_DECOUPLED = re.compile(
    "(?<!schedulefree)adamw(?!schedulefree)|adafactor|galore|lion|muon|spam"
    "|^(adan|conda|dash|fira|laprop|mars|radamlegacy|sgdw|soap)$",
    re.I,
)
# Their decay depends on more than the group holds: an estimated or corrected rate, a projection, or chance.
_OWN_AMOUNT = re.compile("^(adamp|adams|apollo|asgd|ranger21|sgdp|splus)$|^dadapt|prodigy", re.I)
_OWN_AMOUNT_BY = ("normalized", "stable_weight_decay", "stochastic_weight_decay")
_ADAN = re.compile("^adan$", re.I)
_ADAM = re.compile("adam", re.I)


def decay_factor(optimizer: Optimizer, group: Mapping[str, Any]) -> float | Tensor:
    """Return what one step's decoupled weight decay multiplies the parameters of ``group`` with.

    ``1 - lr * weight_decay`` where the decay is decoupled from the gradient: in groups that say so, by the keys of
    torch, timm and pytorch_optimizer (``decoupled_weight_decay``, ``weight_decouple``, ``decoupled_decay``,
    ``decoupled``), or where the optimizer does (``adam_w_mode`` of apex and DeepSpeed), and otherwise under AdamW,
    Adafactor, Lion, Muon, Adan, LaProp, Mars, SGDW and others, recognised by the names of the optimizer's class and
    its base classes. Instead of ``lr``: 1 with ``fixed_decay`` or ``unscaled_wd``, times ``lr / max_lr`` with
    timm's ``corrected_weight_decay``; and ``1 / (1 + lr * weight_decay)`` under Adan, unless with ``no_prox`` or
    ``weight_decouple``.

    1 otherwise, where the decay is part of the rest of the update: the optimizer adds it to the gradient, or how much
    it decays is not in the group (AdamP, SGDP, Prodigy, D-Adaptation and a few others).

    Raises:
        InputError: an Adafactor that finds its learning rate itself and decays with it.

    >>> import torch
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.5, weight_decay=0.1)
    >>> decay_factor(optimizer, optimizer.param_groups[0])
    0.95
    """
    weight_decay = group.get("weight_decay", 0)
    own_amount = is_called(optimizer, _OWN_AMOUNT) or any(group.get(key) for key in _OWN_AMOUNT_BY)
    if own_amount or (not isinstance(weight_decay, Tensor) and weight_decay == 0):
        return 1.0
    divides = is_called(optimizer, _ADAN) and not group.get("no_prox", group.get("weight_decouple"))
    if not (divides or _is_decoupled(optimizer, group)):
        return 1.0
    decay = _rate(optimizer, group) * weight_decay
    factor: float | Tensor = 1 / (1 + decay) if divides else 1 - decay
    return factor


def _is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    said = [bool(group[key]) for key in _SAID_BY if key in group]
    mode = getattr(stepping_optimizer(optimizer), "adam_w_mode", None)
    if mode is not None and is_called(optimizer, _ADAM):  # LAMB has the attribute too, for a decay inside its update
        said.append(bool(mode))
    return any(said) if said else is_called(optimizer, _DECOUPLED)


def _rate(optimizer: Optimizer, group: Mapping[str, Any]) -> Any:
    """Return what the weight decay is multiplied with."""
    own = group.get("relative_step") or (group.get("scale_parameter") and "eps_scale" not in group)  # not timm's
    if own or group["lr"] is None:
        raise InputError(
            f"expected a learning rate in the groups of {type(stepping_optimizer(optimizer)).__name__}, since its "
            f"weight decay is not scaled with its update, got lr={group['lr']!r} and one that it finds itself; pass "
            "lr=... (with relative_step=False and scale_parameter=False where it has them), or weight_decay=0"
        )
    fixed = group.get("fixed_decay") or group.get("unscaled_wd")
    rate = 1.0 if fixed else group["lr"]
    if group.get("corrected_weight_decay"):
        rate = rate * group["lr"] / group["max_lr_snapshot"]
    return rate
