"""From a model with branched blocks to the plain one of the same function."""

import torch
from torch import Tensor, nn

from backpass._internal.batches import tensors_in
from backpass._internal.full_float32 import full_float32
from backpass.errors import InputError, StateError
from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.conversion.module_replacement import copied, outermost_blocks, replace
from backpass.reparam.conversion.probe import Probe, call

__all__ = ["fuse"]


@torch.no_grad()
def fuse(model: nn.Module, *, inplace: bool = False, probe: Probe | None = None) -> nn.Module:
    """Return ``model`` with every branched block replaced by the plain ``nn.Conv2d`` that it equals.

    The convolutions keep dtype, device, memory format and geometry, and have a bias. Each is checked against
    its block on random input. A model without blocks is returned unchanged, so fusing twice equals fusing once.
    A fused model has no branches left to train: keep the training form for that. Hooks on a block are not kept.

    Args:
        model: a model in eval mode, or a single block; blocks may be nested.
        inplace: change ``model`` itself and return it. Default: a deep copy.
        probe: an input of the model (a tensor, or arguments as a sequence or mapping) on which its outputs
            before and after are compared as well, without TF32, to ``sqrt(eps)`` of their dtype (3.5e-4 in float32)
            relative to the largest. Default: blocks are compared one by one only.

    Raises:
        InputError: there are no floating-point tensors in the output on the probe.
        StateError: the model is in train mode; or a block or an output differs after fusing, in which case
            the model is left unchanged.
    """
    blocks = outermost_blocks(model)
    _require_eval(model, blocks)
    expected = None if probe is None else _outputs(model, probe)
    if not inplace:
        model = copied(model)
        blocks = outermost_blocks(model)
    convs = {name: block.to_conv() for name, block in blocks.items()}
    for name, block in blocks.items():
        _check_block(name, block, convs[name])
    if isinstance(model, ReparamBlock):
        return convs[""]
    for name, block in blocks.items():
        replace(model, block, convs[name])
    if probe is None or expected is None:
        return model
    try:
        _check_outputs(expected, _outputs(model, probe))
    except StateError:
        for name, block in blocks.items():
            replace(model, convs[name], block)
        raise
    return model


def _outputs(model: nn.Module, probe: Probe) -> list[Tensor]:
    with full_float32():
        output = call(model, probe)
    found = list(tensors_in(output))
    if not any(tensor.is_floating_point() for tensor in found):
        raise InputError(
            "expected a model whose output on the probe is a floating-point tensor, or lists, tuples and mappings with "
            f"one, got {type(output).__name__}; leave out probe, and compare the outputs of both models yourself"
        )
    return found


def _require_eval(model: nn.Module, blocks: dict[str, ReparamBlock]) -> None:
    training = [name for name, block in blocks.items() if any(m.training for m in block.modules())]
    if blocks and (training or model.training):
        raise StateError(
            f"expected a model in eval mode, got {repr(training[0]) if training else 'it'} in train mode, where "
            "branches normalise with the statistics of the batch, as no convolution can; call model.eval() first"
        )


def _check_block(name: str, block: ReparamBlock, conv: nn.Conv2d) -> None:
    """Compare ``conv`` with ``block`` in float64, up to the rounding of its weights to their dtype."""
    geometry = block.geometry
    spans = zip(geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, strict=True)
    size = [max(d * (k - 1), p) + s + 1 for k, s, p, d in spans]
    x = torch.randn(1, geometry.in_channels, *size, generator=torch.Generator().manual_seed(0), device="cpu").double()
    wide_block, wide_conv = (copied(module).cpu().double() for module in (block, conv))
    difference = (wide_block(x) - wide_conv(x)).abs()
    info = torch.finfo(conv.weight.dtype)
    for parameter in wide_conv.parameters():  # the rounding of each, near zero that of the subnormal numbers
        parameter.abs_().mul_(4 * info.eps).add_(info.tiny * info.eps)
    bound = wide_conv(x.abs()) + 1e-9
    if not bool((difference <= bound).all()):
        raise StateError(
            f"expected block {name!r} ({block.name}) to equal its fused convolution on random input up to "
            f"{bound.max().item():.3g}, got a difference of {difference.max().item():.3g}: a layer inside it was "
            "changed, hooked or replaced, or holds values that are not finite; remove that before fusing"
        )


def _check_outputs(expected: list[Tensor], actual: list[Tensor]) -> None:
    for before, after in zip(expected, actual, strict=True):
        if not before.is_floating_point():
            continue
        scale = before.abs().max() if before.numel() else before.new_zeros(())
        tolerance = torch.finfo(before.dtype).eps ** 0.5 * scale.item()
        difference = (before - after).abs().max().item() if before.numel() else 0.0
        if not difference <= tolerance:
            raise StateError(
                f"expected the model's output on the probe to change by at most {tolerance:.3g}, got {difference:.3g} "
                "after fusing; the model must be deterministic, and use its blocks only by calling them"
            )
