"""From a plain model to one with branched blocks."""

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Any, cast

from torch import nn

from backpass._internal.selection import Include, select
from backpass.errors import InputError, NoEffectWarning
from backpass.reparam.acb import ACBlock
from backpass.reparam.block import unsuitable_norm
from backpass.reparam.dbb import DiverseBranchBlock, DyRepBlock
from backpass.reparam.geometry import BatchNorm, ConvGeometry
from backpass.reparam.norm_act import normalisation
from backpass.reparam.pairs import Probe, find_pairs
from backpass.reparam.repvgg import RepVGGBlock
from backpass.reparam.surgery import install

__all__ = ["BLOCKS", "Conversion", "block_kind", "plan_conversion", "reparameterize"]

BlockKind = type[ACBlock] | type[RepVGGBlock] | type[DiverseBranchBlock] | type[DyRepBlock]

BLOCKS: dict[str, BlockKind] = {block.name: block for block in (ACBlock, RepVGGBlock, DiverseBranchBlock, DyRepBlock)}
"""The kinds of block by name."""

LARGEST_KERNEL = 6
"""Larger kernels (a 7x7 stem) stay as they are in the papers of all four blocks."""


@dataclass(frozen=True)
class Conversion:
    """What :func:`reparameterize` does to a model.

    Attributes:
        block: name of the kind of block.
        converted: name of each convolution that becomes a block, and of the normalisation it takes over.
        skipped: name of each other convolution, and the reason.

    As text: how many convolutions become blocks, each with the normalisation that it takes over, and then those that
    do not, grouped by their reason.
    """

    block: str
    converted: Mapping[str, str]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        total = len(self.converted) + len(self.skipped)
        lines = [f"{self.block}: {len(self.converted)} of {total} convolutions become blocks"]
        lines += _listed(f"{conv}+{norm}" for conv, norm in self.converted.items())
        groups: dict[str, list[str]] = defaultdict(list)
        for conv, reason in self.skipped.items():
            groups[reason].append(conv)
        for reason, convs in groups.items():
            lines += [f"{len(convs)} skipped: {reason}", *_listed(convs)]
        return "\n".join(lines)


def plan_conversion(
    model: nn.Module, name: str, *, include: Include | None = None, probe: Probe | None = None
) -> Conversion:
    """Return what :func:`reparameterize` would do to ``model``, without doing it; same arguments.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    >>> print(plan_conversion(model, "acb"))
    acb: 1 of 2 convolutions become blocks
        0+1
    1 skipped: its kernel must be square with 2 to 6 taps a side, got (1, 1)
        3
    """
    kind = block_kind(name)
    pairs, unpaired = find_pairs(model, probe)
    convs = {n: cast(nn.Conv2d, m) for n, m in model.named_modules() if n in pairs or n in unpaired}
    wanted = select(include, convs)
    converted, skipped = {}, {}
    for conv_name, conv in convs.items():
        reason = None if conv_name in wanted else "it is not included"
        reason = reason or _unsuitable(kind, conv) or unpaired.get(conv_name)
        if not reason and (flaw := unsuitable_norm(normalisation(model.get_submodule(pairs[conv_name])))):
            reason = f"its normalisation does not fit: {flaw}"
        if reason:
            skipped[conv_name] = reason
        else:
            converted[conv_name] = pairs[conv_name]
    return Conversion(name, converted, skipped)


def reparameterize(
    model: nn.Module,
    name: str,
    *,
    include: Include | None = None,
    probe: Probe | None = None,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Return ``model`` with convolutions and the batch normalisations that follow them replaced by blocks.

    Converted is each ``nn.Conv2d`` with a square kernel of 2 to 6 taps a side whose output goes to one
    ``nn.BatchNorm2d`` (or ``nn.SyncBatchNorm``, or timm's ``BatchNormAct2d``) and nowhere else;
    :func:`plan_conversion` tells which those are, and why the others are left alone. The block stands in the place
    of the convolution; the normalisation moves into the block's ``kxk`` branch together with the convolution's
    weight, and in its place stands an ``nn.Identity``, or the ``drop`` and ``act`` of a ``BatchNormAct2d``. New
    kernels have the library's default initialisation, drawn from torch's global generator. Train the result with
    an optimizer built after this call, then :func:`~backpass.reparam.fuse`.

    Args:
        model: any module.
        name: ``"acb"`` (ACNet), ``"repvgg"``, ``"dbb"`` (as its authors built it) or ``"dbb_dyrep"`` (the "DBB"
            of the tables of DyRep and SGS).
        include: convert only these: glob patterns on module names such as ``["layer1.*"]``, or a function
            ``(module name, module) -> bool``. Default: all.
        probe: an input of the model, for models whose forward pass cannot be traced: a tensor, or the
            positional or keyword arguments as a sequence or mapping.
        inplace: change ``model`` itself and return it. Default: a deep copy.
        **options: arguments of the block: ``gamma`` and ``init`` of :class:`~backpass.reparam.ACBlock`,
            ``init`` of :class:`~backpass.reparam.RepVGGBlock` and of
            :class:`~backpass.reparam.DiverseBranchBlock`, ``branches`` of :class:`~backpass.reparam.DyRepBlock`.

    Returns:
        The model in training form. A model in which nothing can be converted comes back unchanged, with a
        :class:`~backpass.errors.NoEffectWarning` that holds the reasons.

    Raises:
        InputError: ``name`` or an option is unknown, or a pattern matches no convolution.
    """
    kind = block_kind(name)
    allowed = sorted(inspect.signature(kind).parameters.keys() - {"conv", "norm"})
    if unknown := sorted(options.keys() - set(allowed)):
        raise InputError(f"{name} has the options {', '.join(allowed)}; got {', '.join(unknown)}.")
    plan = plan_conversion(model, name, include=include, probe=probe)
    if not plan.converted:
        reasons = f":\n{plan}" if plan.skipped else "; it has no nn.Conv2d outside of blocks."
        warnings.warn(f"{name} converts no layer of {type(model).__name__}{reasons}", NoEffectWarning, stacklevel=2)
    model = model if inplace else copy.deepcopy(model)
    for conv_name, norm_name in plan.converted.items():
        conv, place = model.get_submodule(conv_name), model.get_submodule(norm_name)
        norm = cast(BatchNorm, normalisation(place))
        install(model, kind(cast(nn.Conv2d, conv), norm, **options), conv, place)
    return model


def block_kind(name: str) -> BlockKind:
    """Return the class of the blocks called ``name``.

    Raises:
        InputError: there is none; the message lists the names.
    """
    if name not in BLOCKS:
        raise InputError(f"the block must be one of {', '.join(BLOCKS)}, got {name!r}.")
    return BLOCKS[name]


def _listed(names: Iterable[str]) -> list[str]:
    text = fill(", ".join(names), 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return [text] if text else []


def _unsuitable(kind: BlockKind, conv: nn.Conv2d) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, which may do more than nn.Conv2d"
    rows, columns = conv.kernel_size
    if rows != columns or not 1 < rows <= LARGEST_KERNEL:
        return f"its kernel must be square with 2 to {LARGEST_KERNEL} taps a side, got {conv.kernel_size}"
    try:
        return kind.unsuitable(ConvGeometry.of(conv))
    except InputError as error:
        return str(error)
