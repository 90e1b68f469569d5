"""After training: the network is the plain one. And models that cannot be read."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import backpass
from battery.loop import Loop, examine, net
from battery.rows import Row
from works_with.case import Case, Way
from works_with.rows import PGT, both

SETTING = Loop(dtype=torch.float32)


def cases() -> list[Case]:
    """Return the cases of what comes after training."""
    ways: dict[str, Callable[[nn.Module], nn.Module | Callable[[Tensor], Tensor]]] = {
        "`load_state_dict(strict=True)` into the plain model": plain,
        "safetensors": safetensors,
        "`torch.export`": exported,
        "`torch.nn.utils.fusion.fuse_conv_bn_eval`": fused,
    }
    return [
        *(both(name, lambda row, make=make: same_outputs(row, make)) for name, make in ways.items()),
        both("branches in training, `backpass.reparam.fuse` after", branched),
    ]


def same_outputs(row: Row, make: Callable[[nn.Module], Callable[[Tensor], Tensor]], setting: Loop = SETTING) -> None:
    """Check that what is made of a trained model gives its outputs."""
    model = setting.run(row.loss.ours, row.ours).model.eval()
    x = SETTING.batch(5)[0]
    with torch.no_grad():
        torch.testing.assert_close(make(model)(x), model(x), rtol=1e-4, atol=1e-5)


def plain(model: nn.Module) -> nn.Module:
    """Return a new model with the weights."""
    new = SETTING.new_model()
    new.load_state_dict(model.state_dict(), strict=True)
    return new.eval()


def safetensors(model: nn.Module) -> nn.Module:
    """Return a new model with the weights of a file."""
    from safetensors.torch import load_file, save_file

    new = SETTING.new_model()
    with tempfile.TemporaryDirectory() as folder:
        save_file(model.state_dict(), Path(folder, "model.safetensors"))
        new.load_state_dict(load_file(Path(folder, "model.safetensors")), strict=True)
    return new.eval()


def exported(model: nn.Module) -> nn.Module:
    """Return the exported program as a module."""
    return torch.export.export(model, (SETTING.batch(5)[0],)).module()


def fused(model: nn.Module) -> nn.Module:
    """Return the model with its batch normalisation in the convolution before it."""
    first = torch.nn.utils.fusion.fuse_conv_bn_eval(model.get_submodule("0"), model.get_submodule("1"))
    return nn.Sequential(first, *list(model.children())[2:]).eval()


def branched(row: Row) -> None:
    """Train with the branches of ACB and fuse them."""
    with_branches = SETTING.but(build=lambda: backpass.reparam.reparameterize(net(), "acb"))
    same_outputs(row, lambda model: backpass.reparam.fuse(model).eval(), with_branches)


def compiled_ahead() -> list[Case]:
    """Return the cases of models that torch.jit has compiled."""
    return [
        Case(name, [Way("", lambda make=make: construct(make))], [Way("", lambda make=make: power(make))])
        for name, make in (("`torch.jit.script`", scripted), ("`torch.jit.trace`", traced))
    ]


def scripted(model: nn.Module) -> nn.Module:
    """Return the model, scripted."""
    return torch.jit.script(model)  # type: ignore[no-any-return]


def traced(model: nn.Module) -> nn.Module:
    """Return the model, traced."""
    return torch.jit.trace(model, SETTING.batch(0)[0])  # type: ignore[no-any-return]


def construct(make: Callable[[nn.Module], nn.Module]) -> None:
    """Construct SGS on the model."""
    backpass.SpatialGradientScaling(make(SETTING.new_model()))


def power(make: Callable[[nn.Module], nn.Module]) -> None:
    """Compare the gradients of PGT with the definition."""
    examine(PGT, SETTING.but(wrap=make, build=lambda: net().eval()))
