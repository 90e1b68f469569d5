"""One exam for all kinds of block: forward as in the paper, and one convolution that equals it."""

import copy
import itertools

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam import BLOCKS, ReparamBlock
from backpass.reparam.blocks.dbb_dyrep import DYREP_BRANCHES
from backpass.reparam.blocks.geometry import ConvGeometry
from reference.reparam import block_output
from reference.reparam_cases import convolutions, images, randomise

KINDS = [*BLOCKS, "all seven"]


def make(kind: str, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> ReparamBlock:
    if kind == "all seven":
        return BLOCKS["dbb_dyrep"](conv, norm, branches=DYREP_BRANCHES)
    return BLOCKS[kind](conv, norm)


def suited(kind: str) -> list[nn.Conv2d]:
    cls = BLOCKS["dbb_dyrep" if kind == "all seven" else kind]
    return [conv for conv in convolutions() if cls.unsuitable(ConvGeometry.of(conv)) is None]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_compute_what_their_paper_says(kind: str) -> None:
    convs = suited(kind)
    assert len(convs) >= 15
    for conv, training in itertools.product(convs, (False, True)):
        block = randomise(make(kind, conv)).double().train(training)
        x = images(2, 8, 9, 10).double()
        actual = block(x)
        assert torch.allclose(actual, block_output(x, block, training), rtol=1e-9, atol=1e-9), (conv, training)


@pytest.mark.parametrize("kind", KINDS)
def test_fused_convolutions_equal_their_block_in_eval_mode(kind: str) -> None:
    for conv in suited(kind):
        block = randomise(make(kind, conv)).eval()
        x = images(2, 8, 9, 10)
        expected, fused = block(x), block.to_conv()
        assert type(fused) is nn.Conv2d
        difference = (fused(x) - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        assert difference < 1e-5, f"{conv}: {difference}"


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_eval_mode_differ(kind: str) -> None:
    block = randomise(make(kind, nn.Conv2d(8, 8, 3, padding=1)))
    x = images(2, 8, 9, 10)
    assert not torch.allclose(block.train()(x), copy.deepcopy(block).eval()(x), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_blocks_and_fused_convolutions_keep_dtype_and_memory_format(
    kind: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False).to(dtype=dtype, memory_format=memory_format)
    block = make(kind, conv, nn.BatchNorm2d(16, dtype=dtype)).eval()
    fused = block.to_conv()
    for tensor in [*block.parameters(), *fused.parameters()]:
        assert tensor.dtype == dtype
        if tensor.ndim == 4:
            assert tensor.is_contiguous(memory_format=memory_format)
    assert fused(images(1, 8, 6, 6).to(dtype)).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_made_on_the_device_of_their_convolution(kind: str) -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, device="meta")
    block = make(kind, conv, nn.BatchNorm2d(8, device="meta"))
    assert {tensor.device.type for tensor in [*block.parameters(), *block.buffers()]} == {"meta"}
    assert block.to_conv().weight.device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_the_main_branch_takes_over_the_weight_and_the_normalisation(kind: str) -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    norm = randomise(nn.BatchNorm2d(8, eps=1e-3, momentum=0.3)).eval()
    gamma, beta = norm.weight.clone(), norm.bias.clone()
    x = images(2, 8, 5, 5)
    expected = norm(conv(x))
    block = make(kind, conv, norm)
    assert block.main.conv.weight is conv.weight
    assert block.main.norm is norm
    assert torch.equal(norm.bias, beta)
    for name, branch in block.items():
        assert torch.equal(branch.norm.weight, gamma), name
        assert (branch.norm.eps, branch.norm.momentum) == (1e-3, 0.3), name
    # Alone, the main branch is the convolution and its normalisation, bias included.
    kernel, bias = block.fused_kernel_bias(without=[name for name, _ in block.items() if name != "kxk"])
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, bias, padding=1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_without_a_normalisation_to_take_over_keeps_the_bias_of_the_convolution(kind: str) -> None:
    conv = randomise(nn.Conv2d(8, 8, 3, padding=1)).eval()
    x = images(2, 8, 5, 5)
    expected = conv(x)
    block = make(kind, conv)
    kernel, bias = block.fused_kernel_bias(without=[name for name, _ in block.items() if name != "kxk"])
    actual = nn.functional.conv2d(x, kernel, bias, padding=1)
    torch.testing.assert_close(actual * (1 + block.main.norm.eps) ** 0.5, expected)


def test_blocks_have_the_attributes_of_their_convolution() -> None:
    conv = nn.Conv2d(4, 8, 3, stride=2, padding="valid", groups=2)
    block = BLOCKS["acb"](conv)
    assert (block.in_channels, block.out_channels, block.kernel_size) == (4, 8, (3, 3))
    assert (block.stride, block.padding, block.groups, block.padding_mode) == ((2, 2), (0, 0), 2, "zeros")


def test_a_bias_that_the_convolution_lacked_starts_at_zero() -> None:
    conv, norm = nn.Conv2d(8, 8, 3, padding=1, bias=False).eval(), randomise(nn.BatchNorm2d(8)).eval()
    x = images(2, 8, 5, 5)
    expected = norm(conv(x))
    block = BLOCKS["dbb_dyrep"](conv, norm, branches=["kxk"])
    assert not block.main.conv.bias.any()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_synchronised_batch_norm_stays_synchronised(kind: str) -> None:
    group = object()
    block = make(kind, nn.Conv2d(8, 8, 3, padding=1), nn.SyncBatchNorm(8, process_group=group))
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) >= len(block.branches)
    assert {(type(norm), norm.process_group) for norm in norms} == {(nn.SyncBatchNorm, group)}


@pytest.mark.parametrize("kind", KINDS)
def test_fused_kernels_pass_gradients_to_every_parameter(kind: str) -> None:
    block = randomise(make(kind, nn.Conv2d(8, 8, 3, padding=1)))
    kernel, bias = block.fused_kernel_bias()
    (kernel.square().sum() + bias.square().sum()).backward()
    assert [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (nn.BatchNorm2d(8, affine=False), "no gamma and beta"),
        (nn.BatchNorm2d(8, track_running_stats=False), "no running statistics"),
        (nn.GroupNorm(2, 8), "it is a GroupNorm"),
    ],
)
def test_normalisations_that_cannot_be_folded_are_refused(norm: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=f"that ACBlock can take over, got .*{message}"):
        BLOCKS["acb"](nn.Conv2d(8, 8, 3), norm)


@pytest.mark.parametrize(
    ("kind", "conv", "message"),
    [
        (
            "acb",
            nn.Conv2d(8, 8, 4),
            r"ACBlock can replace, got Conv2d\(8, 8.*square, odd and above 1, got \(4, 4\)",
        ),
        ("acb", nn.Conv2d(8, 8, (3, 5)), r"got \(3, 5\)"),
        ("acb", nn.Conv2d(8, 8, 1), r"got \(1, 1\)"),
        ("repvgg", nn.Conv2d(8, 8, 3), r"padding must be dilation \* \(k // 2\), got \(0, 0\)"),
        ("dbb", nn.Conv2d(8, 8, 3, padding=2), r"padding must be k // 2, got \(2, 2\)"),
        ("dbb", nn.Conv2d(8, 8, 3, padding=2, dilation=2), r"dilation must be 1, got \(2, 2\)"),
        ("dbb", nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), r"padding mode must be zeros, got reflect"),
        ("dbb_dyrep", nn.Conv2d(8, 8, 2), r"got \(2, 2\)"),
        ("acb", nn.Conv2d(8, 8, 4, padding="same"), r"pads one side more than the other"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused_with_the_reason(kind: str, conv: nn.Conv2d, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BLOCKS[kind](conv)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_under_autocast(kind: str) -> None:
    block = randomise(make(kind, nn.Conv2d(8, 8, 3, padding=1)))
    x = images(2, 8, 6, 6)
    expected = block.eval()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = block(x)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()
