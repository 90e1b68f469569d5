import math
import subprocess
import sys

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad as timm_adaptive_clip_grad
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from backpass.agc import AdaptiveGradientClipping, adaptive_clip_grad_, unitwise_norm
from backpass.errors import InputError, NoEffectWarning, StateError


def net() -> nn.Sequential:
    """Two convolutions and two linear layers; the last is the head."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5), nn.Linear(5, 3)
    )


def backward(model: nn.Module, scale: float = 100.0) -> dict[str, Tensor]:
    """Give the net large gradients and return copies of them."""
    (scale * model(torch.randn(2, 3, 6, 6)).square().sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def parameter(values: object, gradient: object) -> nn.Parameter:
    tensor = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    tensor.grad = torch.tensor(gradient, dtype=torch.float64)
    return tensor


# Units


@pytest.mark.parametrize(
    ("shape", "norm_shape"),
    [
        ((), ()),
        ((7,), (1,)),
        ((7, 1, 1, 1), (1, 1, 1, 1)),
        ((1, 1), (1, 1)),
        ((7, 4), (7, 1)),
        ((7, 4, 3), (7, 1, 1)),
        ((7, 4, 3, 2), (7, 1, 1, 1)),
        ((7, 1, 3, 3), (7, 1, 1, 1)),
        ((7, 4, 3, 2, 2), (7, 1, 1, 1, 1)),
    ],
    ids=str,
)
def test_units_of_each_shape(shape, norm_shape):
    tensor = torch.randn(shape, dtype=torch.float64)
    norm = unitwise_norm(tensor)
    assert norm.shape == norm_shape
    units = tensor.flatten(1) if norm.numel() > 1 else tensor.reshape(1, -1)
    want = [math.sqrt(sum(value**2 for value in unit.tolist())) for unit in units]
    torch.testing.assert_close(norm.flatten(), torch.tensor(want, dtype=torch.float64))


def test_pythagorean_norms_are_exact():
    assert unitwise_norm(torch.tensor([[[3.0, 4.0]], [[7.0, 24.0]]])).flatten().tolist() == [5.0, 25.0]
    assert unitwise_norm(torch.tensor(-2.0)).item() == 2.0


@pytest.mark.parametrize("groups", [1, 2])
def test_units_of_a_transposed_convolution_are_its_output_channels(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
    norm = unitwise_norm(layer.weight.detach(), transposed_groups=groups).expand_as(layer.weight)
    for channel in range(6):
        # The weights of an output channel are those that its output depends on.
        layer.zero_grad()
        layer(torch.ones(1, 4, 2, 2, dtype=torch.float64))[:, channel].sum().backward()
        own = layer.weight.grad != 0
        assert own.sum() == 4 // groups * 9
        assert torch.allclose(norm[own], layer.weight[own].norm())


def test_norms_of_half_precision_are_taken_in_float32():
    tensor = torch.full((4, 100), 100.0, dtype=torch.float16)  # the squares overflow float16
    norm = unitwise_norm(tensor)
    assert norm.dtype == torch.float32
    assert norm.flatten().tolist() == [1000.0] * 4


# Clipping


def test_hand_case():
    # |W| = 5, 5 and 0: with a factor of 0.1 the limits are 0.5, 0.5 and 0.1 * eps = 0.02.
    weight = parameter([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]], [[6.0, 8.0], [0.3, 0.4], [0.0, 2.0]])
    shares = adaptive_clip_grad_([weight], clip_factor=0.1, eps=0.2, head=None)
    want = torch.tensor([[0.3, 0.4], [0.3, 0.4], [0.0, 0.02]], dtype=torch.float64)
    torch.testing.assert_close(weight.grad, want, rtol=1e-14, atol=0)
    assert shares.keys() == {"0"}
    assert shares["0"].item() == pytest.approx(2 / 3)


def test_closed_form_on_every_unit():
    model = net().double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model(x).square().sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    adaptive_clip_grad_(model, clip_factor=0.2, eps=1e-3, head=None)
    for name, p in model.named_parameters():
        for weight, gradient, got in (
            zip(p, plain[name], p.grad, strict=True) if p.ndim > 1 else [(p, plain[name], p.grad)]
        ):
            factor = min(1.0, 0.2 * max(weight.norm().item(), 1e-3) / max(gradient.norm().item(), 1e-6))
            torch.testing.assert_close(got, gradient * factor)


def test_no_unit_exceeds_its_limit_and_small_gradients_are_untouched():
    model = net()
    backward(model)
    adaptive_clip_grad_(model, clip_factor=0.01, head=None)
    for p in model.parameters():
        assert (unitwise_norm(p.grad) <= 0.01 * unitwise_norm(p).clamp(min=1e-3) * (1 + 1e-6)).all()
    model.zero_grad()
    plain = backward(model, scale=1e-9)
    shares = adaptive_clip_grad_(model, clip_factor=0.01, head=None)
    assert all(share == 0 for share in shares.values())
    assert all(torch.equal(p.grad, plain[name]) for name, p in model.named_parameters())


def test_clipping_twice_is_clipping_once():
    model = net().double()
    (model(torch.randn(2, 3, 6, 6, dtype=torch.float64)).square().sum()).backward()
    adaptive_clip_grad_(model)
    once = [p.grad.clone() for p in model.parameters()]
    adaptive_clip_grad_(model)
    for p, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=0)


def test_equals_timm_on_a_conv_net():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5))
    plain = backward(model)
    timm_adaptive_clip_grad(model.parameters(), clip_factor=0.02, eps=1e-3)
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad.copy_(plain[name])
    adaptive_clip_grad_(model, clip_factor=0.02, eps=1e-3, head=None)
    for name, p in model.named_parameters():
        assert not torch.equal(p.grad, plain[name])
        torch.testing.assert_close(p.grad, want[name])


def test_a_unit_that_starts_at_zero_moves():
    weight = parameter([[0.0, 0.0]], [[3.0, 4.0]])
    adaptive_clip_grad_([weight], clip_factor=0.01, eps=1e-3, head=None)
    assert weight.grad.norm().item() == pytest.approx(1e-5)
    before = weight.detach().clone()
    torch.optim.SGD([weight], lr=0.1).step()
    assert not torch.equal(weight, before)


def test_a_zero_gradient_stays_zero():
    weight = parameter([[1.0, 2.0]], [[0.0, 0.0]])
    shares = adaptive_clip_grad_([weight], head=None)
    assert torch.equal(weight.grad, torch.zeros(1, 2, dtype=torch.float64))
    assert shares["0"] == 0


def test_gains_are_one_unit():
    gain = parameter([[[[1.0]]], [[[0.0]]]], [[[[3.0]]], [[[4.0]]]])
    adaptive_clip_grad_([gain], clip_factor=0.5, head=None)
    torch.testing.assert_close(gain.grad.flatten(), torch.tensor([0.3, 0.4], dtype=torch.float64))


def test_transposed_convolutions_of_a_model_are_clipped_by_output_channel():
    model = nn.Sequential(nn.ConvTranspose1d(2, 2, 1, groups=1, bias=False)).double()
    weight = model[0].weight  # (in, out, taps): column j belongs to output channel j
    weight.data.copy_(torch.tensor([[3.0, 0.6], [4.0, 0.8]]).unsqueeze(-1))
    weight.grad = torch.tensor([[6.0, 6.0], [8.0, 8.0]], dtype=torch.float64).unsqueeze(-1)
    adaptive_clip_grad_(model, clip_factor=1.0)
    want = torch.tensor([[3.0, 0.6], [4.0, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(weight.grad.squeeze(-1), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    weight = nn.Parameter(torch.full((2, 64), 0.5, dtype=dtype))
    weight.grad = torch.full((2, 64), 300.0, dtype=dtype)
    adaptive_clip_grad_([weight], clip_factor=0.01, head=None)
    assert weight.grad.dtype == dtype
    torch.testing.assert_close(weight.grad.float(), torch.full((2, 64), 0.005), rtol=1e-2, atol=0)


def test_parameters_without_gradient_are_skipped():
    model = net()
    backward(model)
    model[0].weight.grad = None
    shares = adaptive_clip_grad_(model)
    assert model[0].weight.grad is None
    assert list(shares) == ["0.bias", "2.weight", "2.bias", "4.weight", "4.bias", "5.bias"]


def test_a_shared_parameter_is_clipped_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model(torch.ones(1, 2)).sum().backward()
    assert list(adaptive_clip_grad_(model)) == ["0.weight", "0.bias", "1.bias", "2.bias"]


def test_names_come_with_pairs():
    model = net()
    backward(model)
    assert list(adaptive_clip_grad_(model.named_parameters(), head=None)) == [n for n, _ in model.named_parameters()]


# The head


def test_weights_of_the_head_are_untouched_and_its_bias_is_not():
    model = net()
    plain = backward(model)
    shares = adaptive_clip_grad_(model)
    assert torch.equal(model[5].weight.grad, plain["5.weight"])
    assert "5.weight" not in shares
    for name, p in model.named_parameters():
        if name != "5.weight":
            assert shares[name] > 0
            assert not torch.equal(p.grad, plain[name])


def test_the_head_can_be_named_or_none():
    model = net()
    plain = backward(model)
    assert "4.weight" not in (shares := adaptive_clip_grad_(model, head="4"))
    assert "5.weight" in shares
    assert torch.equal(model[4].weight.grad, plain["4.weight"])
    assert not torch.equal(model[5].weight.grad, plain["5.weight"])
    assert "4.weight" in adaptive_clip_grad_(model, head=None)


def test_the_head_is_found_by_module_not_by_position():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.stem = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.fc(self.stem(x).mean((2, 3)))

    model = Reversed()
    backward(model)
    assert list(adaptive_clip_grad_(model)) == ["fc.bias", "stem.weight", "stem.bias"]


def test_a_parametrized_head_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    model(torch.randn(2, 3)).sum().backward()
    assert list(adaptive_clip_grad_(model)) == ["0.weight", "0.bias", "1.bias"]


# The object


def test_object_is_the_function():
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    backward(model)
    torch.manual_seed(1)
    backward(twin)
    agc = AdaptiveGradientClipping(model, clip_factor=0.02, eps=1e-2, head="4")
    assert agc.clipped_share == {}
    agc.clip_gradients()
    shares = adaptive_clip_grad_(twin, 0.02, 1e-2, head="4")
    assert agc.clipped_share == {name: share.item() for name, share in shares.items()}
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_attached_it_clips_before_the_step_until_removed():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    agc = AdaptiveGradientClipping(model, clip_factor=0.01)
    agc.attach(optimizer)
    for clipped in (True, False):
        optimizer.zero_grad()
        before = model[0].weight.detach().clone()
        plain = backward(model)["0.weight"]
        optimizer.step()
        moved = unitwise_norm(model[0].weight.detach() - before)
        limit = 0.01 * unitwise_norm(before) * 1.0001
        assert bool((moved <= limit).all()) is clipped
        assert torch.equal(model[0].weight.grad, plain) is not clipped
        agc.remove()


def test_the_handle_ends_one_attachment():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with AdaptiveGradientClipping(model).attach(optimizer):
        plain = backward(model)
        optimizer.step()
        assert not torch.equal(model[0].weight.grad, plain["0.weight"])
    model.zero_grad()
    plain = backward(model)
    optimizer.step()
    assert torch.equal(model[0].weight.grad, plain["0.weight"])


def test_closures_are_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    AdaptiveGradientClipping(model).attach(optimizer)
    with pytest.raises(StateError, match=r"call clip_gradients\(\) at the end of the closure"):
        optimizer.step(lambda: torch.tensor(0.0))
    with pytest.raises(StateError, match=r"step\(closure\) computes gradients after this hook"):
        optimizer.step(closure=lambda: torch.tensor(0.0))


# Sharded parameters

SHARDED = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from backpass.agc import adaptive_clip_grad_
from backpass.errors import StateError

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def backward(model):
    model(torch.ones(1, 3, 6, 6, dtype=torch.float64)).square().sum().backward()
    return model

def net():
    torch.manual_seed(0)  # five filters on two ranks: uneven shards
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3), nn.Flatten(), nn.Linear(24, 3)).double()

whole, sharded = backward(net()), net()
fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
backward(sharded)
want, got = adaptive_clip_grad_(whole, 0.5), adaptive_clip_grad_(sharded, 0.5)
assert {name: share.item() for name, share in got.items()} == {name: share.item() for name, share in want.items()}
assert 0 < sum(want.values()) < len(want)
for p, q in zip(sharded.parameters(), whole.parameters(), strict=True):
    torch.testing.assert_close(p.grad.full_tensor(), q.grad)
if rank == 0:
    sharded[1].weight.grad.to_local()[0] = float("nan")
try:
    adaptive_clip_grad_(sharded)
except StateError as error:
    print(error)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_sharded_parameters_are_clipped_like_whole_ones(tmp_path):
    command = [sys.executable, "-c", SHARDED]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0
        assert "got NaN or infinity in 1.weight (1 of 5 parameters are affected)" in output


# The errors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_nothing_changes(bad):
    model = net()
    backward(model)
    model[2].weight.grad[0, 0, 0, 0] = bad
    model[4].bias.grad[0] = bad
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    with pytest.raises(StateError, match=r"got NaN or infinity in 2\.weight \(2 of 7 parameters are affected\)"):
        adaptive_clip_grad_(model)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad.nan_to_num(), plain[name].nan_to_num())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stays_so_for_a_scaler_to_see(bad):
    weight = parameter([[3.0, 4.0], [3.0, 4.0]], [[bad, 1.0], [6.0, 8.0]])
    adaptive_clip_grad_([weight], clip_factor=1.0, head=None, error_if_nonfinite=False)
    assert not weight.grad[0].isfinite().all()
    torch.testing.assert_close(weight.grad[1], torch.tensor([3.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("option", ["clip_factor", "eps"])
def test_options_out_of_range(option, value):
    for call in (adaptive_clip_grad_, AdaptiveGradientClipping):
        with pytest.raises(InputError, match=rf"expected {option} to be a finite number above 0, got {value}"):
            call(net(), **{option: value})


def test_a_head_that_is_not_there():
    with pytest.raises(InputError) as error:
        AdaptiveGradientClipping(net(), head="fc")
    assert "expected head to be a module of Sequential, whose linear layers are '4', '5', got 'fc'" in str(error.value)


def test_parameters_have_no_head():
    with pytest.raises(InputError, match=r"a module, in which head='auto' is looked up, got list; .* head=None"):
        adaptive_clip_grad_(list(net().parameters()))


def test_sparse_gradients_are_refused():
    model = nn.Embedding(4, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match=r"got a sparse one of shape \(4, 2\) in weight.*sparse=False"):
        adaptive_clip_grad_(model)


def test_nothing_to_clip_warns():
    with pytest.warns(NoEffectWarning, match="Linear has no parameter to clip outside its head"):
        AdaptiveGradientClipping(nn.Linear(2, 2, bias=False))
