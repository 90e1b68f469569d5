"""State dicts across the forms of a model: plain, in training with blocks, and fused.

============  ==========================================  =====================================
form          convolution ``c``                           its normalisation ``n``
============  ==========================================  =====================================
plain         ``nn.Conv2d``                               ``nn.BatchNorm2d``
training      a block; keys ``c.branches.NAME...``        ``nn.Identity`` (inside the block)
fused         ``nn.Conv2d`` with bias                     ``nn.Identity`` (inside the kernel)
============  ==========================================  =====================================

Where the normalisation is timm's ``BatchNormAct2d``, the ``nn.Identity`` is an ``nn.Sequential`` of its ``drop`` and
``act``.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.blocks.block import MAIN
from backpass.reparam.conversion.batch_norm_act import is_remainder
from backpass.reparam.conversion.block_map import BlockMap, restore_blocks, submodule
from backpass.reparam.conversion.fusion import fuse
from backpass.reparam.conversion.module_replacement import outermost_blocks
from backpass.reparam.conversion.plain_form import to_plain

__all__ = ["load_state_dict"]

_MARK = f"branches.{MAIN}."


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], *, blocks: BlockMap | None = None) -> None:
    """Load ``state_dict``, strict, whether it and ``model`` are plain, in training form or fused.

    A checkpoint of the form of ``model`` loads directly. A training checkpoint loads into a plain or a fused model
    through ``blocks``: the training form is rebuilt, loaded and turned into the form of ``model``. A plain model is
    then one for evaluation, as :func:`~backpass.reparam.to_plain` returns it without batches. A block that
    replaced no normalisation and no bias, as DyRep's do, needs the fused form, whose convolution has a bias. A
    plain or fused checkpoint does not load into a training form, since it has no branches, nor into the other of
    the two.

    Args:
        model: the network that is to have the checkpoint's function.
        state_dict: the checkpoint.
        blocks: the :func:`block_map` of the model that the checkpoint is from; needed if only the checkpoint is in
            training form.

    Raises:
        InputError: the forms do not go together, or the names of one of the two have a prefix, as of a wrapper; the
            message names the first layer or the prefix, and the next step.
    """
    ours = outermost_blocks(model, all_names=True)
    theirs = {key[: key.index(_MARK)].rstrip(".") for key in state_dict if _MARK in key}
    theirs = _outermost(theirs)
    known = set(ours) or _outermost(blocks or ())
    for shorter, longer, place in ((known, theirs, "checkpoint"), (theirs, known, "model")):
        if (prefix := _prefix(shorter, longer)) is not None:
            raise InputError(
                f"expected a model and a checkpoint with the same names, got the prefix {prefix!r} in the {place} "
                "alone; use the module inside the wrapper, or its state_dict, or remove the prefix from the names"
            )
    if missing := [name for name in ours if name not in theirs]:
        raise InputError(
            f"expected a block ({ours[missing[0]].name}) at {missing[0]!r}, got a checkpoint with a plain convolution "
            f"({len(missing)} such layers): branches cannot be recovered from their sum; load it into the plain model "
            "and call reparameterize afterwards, or into fuse(model.eval()) if the checkpoint is fused"
        )
    if extra := sorted(theirs - set(ours)):
        if blocks is None:
            raise InputError(
                f"expected a plain convolution at {extra[0]!r}, got a checkpoint with a block ({len(extra)} such "
                "layers); pass blocks=block_map(the model that was saved), or call reparameterize on this model first"
            )
        state_dict = _converted(model, state_dict, blocks)
    elif not ours:
        _refuse_other_form(model, state_dict)
    model.load_state_dict(state_dict)


def _outermost(names: Collection[str]) -> set[str]:
    """Return the names that lie in no other."""
    return {name for name in names if not any(name.startswith(f"{outer}.") for outer in names)}


def _prefix(names: set[str], longer: set[str]) -> str | None:
    """Return what makes all of ``longer`` when put before each of ``names``; ``None``: nothing does."""
    for name in sorted(names)[:1]:
        for found in longer:
            prefix = found.removesuffix(name)
            if prefix.endswith(".") and {prefix + other for other in names} == longer:
                return prefix
    return None


def _refuse_other_form(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Raise InputError if of model and checkpoint one is plain and one is fused; PyTorch reports other differences."""
    modules = dict(model.named_modules(remove_duplicate=False))
    own = model.state_dict()
    missing, extra = _layers(own.keys() - state_dict.keys()), _layers(state_dict.keys() - own.keys())
    norms = [name for name in missing if isinstance(modules.get(name), nn.modules.batchnorm._BatchNorm)]
    rests = [name for name in extra if is_remainder(modules.get(name))]
    # What else differs between the two forms is the bias that a fused convolution has.
    if not all(isinstance(modules.get(name), nn.Conv2d) for name in {*missing, *extra} - {*norms, *rests}):
        return
    if norms and not rests:
        raise InputError(
            f"expected a plain checkpoint with the normalisation {norms[0]!r}, got a fused one without it "
            f"({len(norms)} such layers): it cannot be recovered from a kernel; load it into the fused form, such as "
            "fuse(reparameterize(model, name).eval())"
        )
    if rests and not norms:
        raise InputError(
            f"expected a fused checkpoint without the normalisation {rests[0]!r}, got a plain one with it "
            f"({len(rests)} such layers); load it into the plain model, before reparameterize and fuse"
        )


def _layers(keys: Iterable[str]) -> list[str]:
    """Return the names of the layers that have these parameters and buffers, sorted."""
    counted = (key.rpartition(".") for key in keys)  # older checkpoints have no num_batches_tracked, and load
    return sorted({layer for layer, _, attribute in counted if attribute != "num_batches_tracked"})


def _converted(model: nn.Module, state_dict: Mapping[str, Tensor], blocks: BlockMap) -> dict[str, Any]:
    """Return a training checkpoint in the plain or fused form that ``model`` has."""
    if outermost_blocks(model):
        raise InputError(
            "expected a model with all of the checkpoint's blocks or with none, got one with some; start from the "
            "plain model"
        )
    for name, record in blocks.items():
        conv = submodule(model, name)
        if isinstance(conv, nn.Conv2d) and conv.bias is None and record["absorbed"] is None and not record["had_bias"]:
            raise InputError(
                f"expected a convolution with a bias at {name!r}, where the block of the checkpoint replaced no "
                "normalisation, as DyRep's do, got one without; load the checkpoint into "
                "fuse(restore_blocks(model, blocks).eval())"
            )
    twin = restore_blocks(model, blocks).eval()
    twin.load_state_dict(state_dict)
    absorbed = [record["absorbed"] for record in blocks.values() if record["absorbed"] is not None]
    plain = any(not is_remainder(submodule(model, name)) for name in absorbed)
    return (to_plain(twin) if plain else fuse(twin)).state_dict()
