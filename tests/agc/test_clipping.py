import math
import subprocess
import sys

import pytest

pytest.importorskip("timm")
import torch
from timm.utils.agc import adaptive_clip_grad as timm_adaptive_clip_grad
from torch import nn

from backpass.agc import AdaptiveGradientClipping, adaptive_clip_grad_, unitwise_norm
from backpass.errors import InputError, NoEffectWarning, StateError
from reference.agc_cases import backward, net, parameter


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


def test_object_is_the_function():
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    backward(model)
    torch.manual_seed(1)
    backward(twin)
    agc = AdaptiveGradientClipping(model, clip_factor=0.02, eps=1e-2, head="4")
    assert agc.clipped_fraction == {}
    agc.clip_gradients()
    shares = adaptive_clip_grad_(twin, 0.02, 1e-2, head="4")
    assert agc.clipped_fraction == {name: share.item() for name, share in shares.items()}
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
        with pytest.raises(InputError, match=rf"expected {option} to be a finite number > 0, got {value}"):
            call(net(), **{option: value})


def test_sparse_gradients_are_refused():
    model = nn.Embedding(4, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match=r"got a sparse one of shape \(4, 2\) in weight.*sparse=False"):
        adaptive_clip_grad_(model)


def test_nothing_to_clip_warns():
    with pytest.warns(NoEffectWarning, match="Linear has no parameter to clip outside its head"):
        AdaptiveGradientClipping(nn.Linear(2, 2, bias=False))
