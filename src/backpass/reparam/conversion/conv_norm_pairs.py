"""Which convolution feeds which batch normalisation, and nothing else."""

from typing import NamedTuple

from torch import nn

from backpass._internal.modes import set_mode
from backpass._internal.module_state import keeping_state
from backpass._internal.random_state import keeping_global_states
from backpass._internal.wrappers import unwrap
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
        doubt: why pairs may be wrong, and the next step; ``None``: they are certain.
    """

    pairs: dict[str, str]
    unpaired: dict[str, str]
    read: set[str]
    doubt: str | None


def find_pairs(model: nn.Module, probe: Probe | None = None) -> Pairs:
    """Return which batch normalisation each convolution belongs to, and why the others belong to none.

    In every call of a pair that is seen, the normalisation's input is the convolution's output, which has no other
    use, and no other code reads a parameter or buffer of the two, such as ``self.conv.weight``. To keep the output in
    an attribute of a module, where a loss may read it, is another use. With a probe the model runs on it in eval and in
    train mode, without gradients, and every use of every convolution's output is seen. Without one the forward pass is
    traced symbolically (``torch.fx``) in both modes, and with its defaults too if it has any. Either way a pair is
    certain. Where tracing fails, each submodule is traced by itself and neighbours in an ``nn.Sequential`` count,
    and a pair is not certain: what the code around them does is not seen, such as keeping the output of a
    convolution on the way through an ``nn.Sequential``. Nor is it where the model does not run on the probe in
    train mode. Layers inside a :class:`~backpass.reparam.ReparamBlock` do not count.

    Args:
        model: any module. Modes, parameters, buffers, attributes and random states are restored.
        probe: an input of the model, for models whose forward pass cannot be traced.

    Returns:
        The pairs, and a reason for each other ``nn.Conv2d`` (subclasses included), in the order of
        ``model.named_modules()``; and whether the pairs are certain.
    """
    names = _names(model)
    flow = DataFlow()
    devices = [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]
    with keeping_state(model), keeping_global_states(devices):
        if probe is not None:
            flow = run(model, probe, names)
        else:
            for training in (True, False):
                with set_mode(model, training=training):
                    trace(unwrap(model), names, flow)
    pairs, reasons = {}, {}
    for module, name in names.items():
        if isinstance(module, nn.Conv2d):
            norm, reason = flow.pair_or_reason(name)
            if norm is None:
                reasons[name] = reason
            else:
                pairs[name] = norm
    read = {name for module, name in names.items() if isinstance(module, nn.Conv2d) and name in flow.reads}
    return Pairs(pairs, reasons, read, flow.doubt)


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
