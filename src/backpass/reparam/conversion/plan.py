"""Which convolutions of a model become blocks, and why the others do not."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import cast

from torch import nn

from backpass._internal.selection import Include, select
from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import unsuitable_norm
from backpass.reparam.blocks.geometry import ConvGeometry
from backpass.reparam.blocks.registry import BlockKind, block_kind
from backpass.reparam.conversion.batch_norm_act import normalisation
from backpass.reparam.conversion.conv_norm_pairs import find_pairs
from backpass.reparam.conversion.obstacles import obstacles
from backpass.reparam.conversion.probe import Probe

__all__ = ["Conversion", "plan_conversion"]

LARGEST_KERNEL = 6
"""Larger kernels (a 7x7 stem) stay plain in the papers of all four blocks."""


@dataclass(frozen=True)
class Conversion:
    """What :func:`~backpass.reparam.reparameterize` does to a model.

    Attributes:
        block: name of the kind of block.
        converted: name of each convolution that becomes a block, and of the normalisation it takes over.
        skipped: name of each other convolution, and the reason.
        doubt: why ``converted`` may hold a convolution whose output has another use; ``None``: it holds none.

    As text: how many convolutions become blocks, each with the normalisation that it takes over, then the doubt, and
    then those that do not, grouped by their reason.
    """

    block: str
    converted: Mapping[str, str]
    skipped: Mapping[str, str]
    doubt: str | None = None

    def __str__(self) -> str:
        total = len(self.converted) + len(self.skipped)
        lines = [f"{self.block}: {len(self.converted)} of {total} convolutions become blocks"]
        lines += _listed(f"{conv}+{norm}" for conv, norm in self.converted.items())
        lines += [] if self.doubt is None else [f"not certain: {self.doubt}"]
        groups: dict[str, list[str]] = defaultdict(list)
        for conv, reason in self.skipped.items():
            groups[reason].append(conv)
        for reason, convs in groups.items():
            lines += [f"{len(convs)} skipped: {reason}", *_listed(convs)]
        return "\n".join(lines)


def plan_conversion(
    model: nn.Module, name: str, *, include: Include | None = None, probe: Probe | None = None
) -> Conversion:
    """Return what :func:`~backpass.reparam.reparameterize` would do to ``model``, without doing it; same arguments.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    >>> print(plan_conversion(model, "acb"))
    acb: 1 of 2 convolutions become blocks
        0+1
    1 skipped: its kernel must be square with 2 to 6 taps a side, got (1, 1)
        3
    """
    kind = block_kind(name)
    pairs, unpaired, _, doubt = find_pairs(model, probe)
    convs = {n: cast(nn.Conv2d, m) for n, m in model.named_modules() if n in pairs or n in unpaired}
    wanted, fixed = select(include, convs), obstacles(model)
    converted, skipped = {}, {}
    for conv_name, conv in convs.items():
        reason = None if conv_name in wanted else "it is not included"
        reason = reason or _unsuitable(kind, conv) or fixed.get(conv) or _frozen(conv) or unpaired.get(conv_name)
        if not reason:
            norm = model.get_submodule(pairs[conv_name])
            flaw = unsuitable_norm(normalisation(norm)) or fixed.get(norm) or _frozen(norm) or _other_mode(norm, conv)
            reason = flaw and f"its normalisation does not fit: {flaw}"
        if reason:
            skipped[conv_name] = reason
        else:
            converted[conv_name] = pairs[conv_name]
    return Conversion(name, converted, skipped, doubt if converted else None)


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


def _frozen(layer: nn.Module) -> str | None:
    return None if layer.weight.requires_grad else "it is frozen (requires_grad=False)"


def _other_mode(norm: nn.Module, conv: nn.Conv2d) -> str | None:
    if norm.training == conv.training:
        return None
    modes = {True: "train", False: "eval"}
    return f"it is in {modes[norm.training]} mode and its convolution in {modes[conv.training]} mode"
