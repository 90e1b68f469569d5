import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from backpass._internal.full_float32 import full_float32
from backpass.errors import InputError, StateError
from backpass.reparam import BLOCKS, ACBlock, DyRepBlock, fuse, reparameterize
from reference.reparam_cases import Residual, images, randomise


@pytest.mark.parametrize("name", BLOCKS)
def test_a_fused_model_is_plain_and_computes_the_same(name: str) -> None:
    model = randomise(reparameterize(Residual(), name)).eval()
    x = images(2, 3, 9, 9)
    expected = model(x)
    fused = fuse(model, probe=x)
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    assert {type(module) for module in fused.modules()} == {
        Residual, nn.Conv2d, nn.Identity, nn.Sequential, nn.BatchNorm2d, nn.Linear,
    }  # fmt: skip
    assert (fused.conv1.stride, fused.conv1.padding, fused.conv1.bias.shape) == ((2, 2), (1, 1), (8,))
    assert isinstance(model.conv1, BLOCKS[name])


def test_fusing_twice_equals_fusing_once() -> None:
    once = fuse(randomise(reparameterize(Residual(), "acb")).eval())
    twice = fuse(once)
    assert twice is not once
    state = once.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in twice.state_dict().items())
    plain = Residual()
    assert fuse(plain, inplace=True) is plain


def test_fusing_in_place_changes_the_model_itself() -> None:
    model = randomise(reparameterize(Residual(), "acb")).eval()
    x = images(2, 3, 9, 9)
    expected = model(x)
    assert fuse(model, inplace=True, probe=[x]) is model
    assert type(model.conv1) is nn.Conv2d
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_a_single_block_fuses_to_its_convolution() -> None:
    block = randomise(ACBlock(nn.Conv2d(3, 4, 3, padding=1))).eval()
    x = images(2, 3, 6, 6)
    fused = fuse(block)
    assert type(fused) is nn.Conv2d
    torch.testing.assert_close(fused(x), block(x), rtol=1e-4, atol=1e-5)


def test_nested_blocks_fuse_to_one_convolution() -> None:
    block = DyRepBlock(nn.Conv2d(4, 4, 3, padding=1))
    for name in ("kxk", "1x1_kxk"):
        branch = block.branches[name]
        branch.conv = DyRepBlock(branch.conv, branches=["kxk", "1x1_avg", "1xk"])
    model = nn.Sequential(randomise(block)).eval()
    x = images(2, 4, 6, 6)
    fused = fuse(model, probe=x)
    assert [type(module) for module in fused.modules()] == [nn.Sequential, nn.Conv2d]
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["model", "block", "layer"])
def test_train_mode_is_refused_with_the_remedy(part: str) -> None:
    model = reparameterize(Residual(), "acb").eval()
    if part == "model":
        model.training = True
        place = "got it in train mode"
    elif part == "block":
        model.conv2.train()
        place = "got 'conv2' in train mode"
    else:
        model.conv2.main.norm.train()
        place = "got 'conv2' in train mode"
    with pytest.raises(StateError, match=rf"{place}.*call model.eval\(\) first"):
        fuse(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_fusing_keeps_dtype_and_memory_format(dtype: torch.dtype) -> None:
    plain = Residual().to(dtype=dtype, memory_format=torch.channels_last)
    fused = fuse(randomise(reparameterize(plain, "dbb")).eval())
    for name, parameter in fused.named_parameters():
        assert parameter.dtype == dtype, name
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name


def test_a_block_that_differs_by_more_than_rounding_is_found() -> None:
    model = randomise(reparameterize(Residual(), "acb")).eval()
    norm = model.conv1.branches["kx1"].norm
    norm.register_forward_hook(lambda module, inputs, output: output * (1 + 1e-4))
    with pytest.raises(StateError, match="expected block 'conv1'"):
        fuse(model)


class Drifting(Residual):
    """Differs by five thousandths of its largest output where a layer is no block, and returns classes too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        drift = 0 if isinstance(self.conv1, ACBlock) else 5e-3 * logits.abs().max()
        return logits + drift, logits.argmax(1)


def test_the_probe_finds_small_differences_and_looks_at_floating_point_alone() -> None:
    model, x = randomise(reparameterize(Drifting(), "acb")).eval(), images(2, 3, 9, 9)
    with pytest.raises(StateError, match="output on the probe to change by at most"):
        fuse(model, probe=x)
    exact = randomise(reparameterize(Drifting(), "acb", include=["conv2"])).eval()
    assert fuse(exact, probe=x)(x)[1].dtype == torch.int64


def test_half_precision_kernels_near_zero_fuse() -> None:
    block = ACBlock(nn.Conv2d(64, 64, 3, padding=1), gamma=1e-6).half().eval()
    assert fuse(block).weight.dtype == torch.float16


def test_a_probe_without_a_tensor_to_compare_is_refused() -> None:
    @dataclass
    class Output:
        logits: Tensor

    class Wrapping(Residual):
        def forward(self, x: Tensor) -> Output:
            return Output(super().forward(x))

    model = reparameterize(Wrapping(), "acb", probe=images(2, 3, 8, 8)).eval()
    with pytest.raises(InputError, match="floating-point tensor, or lists, tuples and mappings with one, got Output"):
        fuse(model, probe=images(2, 3, 8, 8))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_block_that_was_tampered_with_is_found_and_left_alone(inplace: bool) -> None:
    model = randomise(reparameterize(Residual(), "acb")).eval()
    model.conv2.main.register_forward_hook(lambda module, args, out: out.relu())
    with pytest.raises(StateError, match=r"block 'conv2' \(acb\) to equal its fused .* a difference of [0-9.]+:"):
        fuse(model, inplace=inplace)
    assert isinstance(model.conv1, ACBlock)


def test_a_block_with_values_that_are_not_finite_is_found() -> None:
    model = randomise(reparameterize(Residual(), "acb")).eval()
    with torch.no_grad():
        model.conv1.main.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(StateError, match=r"block 'conv1' \(acb\) to equal .* a difference of nan.*not finite"):
        fuse(model)


class Peeping(Residual):
    """Uses the layer in another way than by calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1.0 if isinstance(self.conv1, ACBlock) else 0.0)


def test_the_probe_finds_a_model_that_changed_and_leaves_it_alone() -> None:
    model = randomise(reparameterize(Peeping(), "acb")).eval()
    fuse(copy.deepcopy(model))
    with pytest.raises(
        StateError,
        match=r"to change by at most .*, got 1 after.*use its blocks only by calling them",
    ):
        fuse(model, inplace=True, probe=images(2, 3, 9, 9))
    assert isinstance(model.conv1, ACBlock)
    assert isinstance(model.conv2, ACBlock)


def tf32() -> bool:
    convolutions = getattr(torch.backends.cudnn, "conv", None)  # from torch 2.9 on
    return torch.backends.cudnn.allow_tf32 if convolutions is None else convolutions.fp32_precision == "tf32"


def test_the_probe_is_compared_without_tf32() -> None:
    seen = []

    class Looking(Residual):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tf32())
            return super().forward(x)

    model = randomise(reparameterize(Looking(), "acb", probe=images(2, 3, 8, 8))).eval()
    seen.clear()
    fuse(model, probe=images(2, 3, 8, 8))
    assert (seen, tf32()) == ([False, False], True)


@pytest.mark.cuda
@pytest.mark.parametrize("name", BLOCKS)
def test_fusing_stays_on_the_device(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = randomise(reparameterize(Residual().cuda(), name)).eval()
    x = images(2, 3, 9, 9).cuda()
    fused = fuse(model, probe=x)
    assert {parameter.device.type for parameter in fused.parameters()} == {"cuda"}
    with full_float32():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-3)
