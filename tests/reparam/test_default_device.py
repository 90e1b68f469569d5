"""A model on the CPU works as well while new tensors go elsewhere; the meta device stands for an accelerator."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from backpass.reparam import (
    BLOCKS,
    DyRep,
    branch_scales,
    equivalent_scaling,
    fuse,
    reparameterize,
    to_plain,
)
from reference.reparam_cases import Residual, images

X, TARGET = images(6, 3, 9, 9), torch.arange(6) % 5


@pytest.fixture
def model() -> nn.Module:
    return Residual()


@pytest.fixture
def elsewhere(model: nn.Module) -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_made_and_fused_on_the_device_of_the_model(model: nn.Module, block: str) -> None:
    branched = reparameterize(model, block).eval()
    for plain in (fuse(branched), to_plain(branched)):
        torch.testing.assert_close(plain(X), branched(X), rtol=1e-4, atol=1e-4)
    if block == "acb":
        assert equivalent_scaling(branched.conv1).tolist() == [[1, 2, 1], [2, 3, 2], [1, 2, 1]]
        assert equivalent_scaling(branched.conv1, branch_scales(branched.conv1)).device.type == "cpu"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("metric", ["snip", "random"])
def test_dyrep_grows_and_prunes_on_the_device_of_the_model(model: nn.Module, metric: str) -> None:
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    dyrep = DyRep(model, optimizer, metric=metric)
    for _ in range(2):
        nn.functional.cross_entropy(model(X), TARGET).backward()
        dyrep.record()
        assert dyrep.adjust([X]).grown is not None
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    resumed = DyRep(plain, torch.optim.SGD(plain.parameters(), lr=0.02), metric=metric)
    resumed.load_state_dict(dyrep.state_dict())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.eval()(X), model.eval()(X))
