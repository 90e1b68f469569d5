"""Which convolution feeds which batch normalisation, and nothing else."""

from typing import NamedTuple

from torch import nn

from backpass._internal.modes import set_mode
from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.conversion.data_flow import DataFlow
from backpass.reparam.conversion.probe import Probe
from backpass.reparam.conversion.probe_run import run
from backpass.reparam.conversion.symbolic_trace import trace

__all__ = ["Pairs", "find_pairs"]


class Pairs(NamedTuple):
    """What :func:`find_pairs` found; convolutions and normalisations by qualified name.

    Attributes:
        pairs: the batch normalisation that belongs to each convolution.
        unpaired: why each other convolution has none.
        read: the convolutions of which other code in the forward pass reads a tensor, such as ``self.conv.weight``.
    """

    pairs: dict[str, str]
    unpaired: dict[str, str]
    read: set[str]


def find_pairs(model: nn.Module, probe: Probe | None = None) -> Pairs:
    """Return which batch normalisation each convolution belongs to, and why the others belong to none.

    A pair is certain: in every call the normalisation's input is the convolution's output, which has no other
    use, and no other code reads a parameter or buffer of the two, such as ``self.conv.weight``. Without a probe the
    forward pass is traced symbolically (``torch.fx``) in train and in eval mode; where that fails, each submodule is
    traced by itself and neighbours in an ``nn.Sequential`` count. With a probe the model runs once on it, in eval mode
    and without gradients, and every use of every convolution's output is seen. Layers inside a
    :class:`~backpass.reparam.ReparamBlock` do not count.

    Args:
        model: any module; it is left unchanged.
        probe: an input of the model, for models whose forward pass cannot be traced.

    Returns:
        The pairs, and a reason for each other ``nn.Conv2d`` (subclasses included), in the order of
        ``model.named_modules()``.
    """
    names = _names(model)
    flow = DataFlow()
    if probe is not None:
        run(model, probe, names, flow)
    else:
        for training in (True, False):
            with set_mode(model, training=training):
                trace(model, names, flow)
    pairs, reasons = {}, {}
    for module, name in names.items():
        if isinstance(module, nn.Conv2d):
            norm, reason = flow.pair_or_reason(name)
            if norm is None:
                reasons[name] = reason
            else:
                pairs[name] = norm
    read = {name for module, name in names.items() if isinstance(module, nn.Conv2d) and name in flow.reads}
    return Pairs(pairs, reasons, read)


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """Return the name of each module outside the blocks; a module with several names keeps the first."""
    names: dict[nn.Module, str] = {}

    def visit(module: nn.Module, name: str) -> None:
        names[module] = name
        if isinstance(module, ReparamBlock):
            return
        for key, child in module.named_children():
            if child not in names:
                visit(child, f"{name}.{key}" if name else key)

    visit(model, "")
    return names
