from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations

from backpass.agc import AdaptiveGradientClipping, adaptive_clip_grad_
from backpass.errors import InputError
from reference.agc_cases import backward, net


def test_transposed_convolutions_of_a_model_are_clipped_by_output_channel():
    model = nn.Sequential(nn.ConvTranspose1d(2, 2, 1, groups=1, bias=False)).double()
    weight = model[0].weight  # (in, out, taps): column j belongs to output channel j
    weight.data.copy_(torch.tensor([[3.0, 0.6], [4.0, 0.8]]).unsqueeze(-1))
    weight.grad = torch.tensor([[6.0, 6.0], [8.0, 8.0]], dtype=torch.float64).unsqueeze(-1)
    adaptive_clip_grad_(model, clip_factor=1.0)
    want = torch.tensor([[3.0, 0.6], [4.0, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(weight.grad.squeeze(-1), want)


def test_a_shared_parameter_is_clipped_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model(torch.ones(1, 2)).sum().backward()
    assert list(adaptive_clip_grad_(model)) == ["0.weight", "0.bias", "1.bias", "2.bias"]


def test_names_come_with_pairs():
    model = net()
    backward(model)
    assert list(adaptive_clip_grad_(model.named_parameters(), head=None)) == [n for n, _ in model.named_parameters()]


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


def test_biases_and_gains_of_a_head_of_several_layers_are_clipped():
    head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    model = nn.Sequential(nn.Linear(3, 4), head)
    model(torch.randn(2, 3)).sum().backward()
    body = ["0.weight", "0.bias"]
    assert list(adaptive_clip_grad_(model, head="1")) == [*body, "1.0.weight", "1.0.bias", "1.1.bias", "1.2.bias"]


def test_a_head_that_is_not_there():
    with pytest.raises(InputError) as error:
        AdaptiveGradientClipping(net(), head="fc")
    assert "expected head to be a module of Sequential, whose linear layers are '4', '5', got 'fc'" in str(error.value)


def test_parameters_have_no_head():
    with pytest.raises(InputError, match=r"a module, in which head='auto' is looked up, got list; .* head=None"):
        adaptive_clip_grad_(list(net().parameters()))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        lambda model: nn.Sequential(*(torch.compile(layer, backend="eager") for layer in model)),
    ],
)
def test_names_are_those_of_the_model_without_wrappers(wrap):
    model = net()
    wrapped = wrap(model)
    backward(model)
    want = [name for name, _ in model.named_parameters() if name != "4.weight"]
    agc = AdaptiveGradientClipping(wrapped, head="4")
    agc.clip_gradients()
    assert list(agc.clipped_fraction) == want
    with pytest.raises(InputError, match=r"to be a module of Sequential, .* '4', '5', got 'module.4'; .* without wrap"):
        adaptive_clip_grad_(wrapped, head="module.4")


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_flattened_parameters_are_refused(tmp_path: Path, use_orig_params: bool):
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        sharded = FullyShardedDataParallel(net(), device_id=torch.device("cpu"), use_orig_params=use_orig_params)
        for model in (sharded, nn.Sequential(sharded)):
            for call in (adaptive_clip_grad_, AdaptiveGradientClipping):
                with pytest.raises(InputError, match=r"\(FSDP1\) flattens parameters, so the norms of .*fully_shard"):
                    call(model)
    finally:
        dist.destroy_process_group()


def test_tied_parameters_of_several_modules_are_clipped_once():
    encoder, decoder = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    decoder.weight = encoder.weight
    encoder.weight.grad = torch.full((3, 3), 100.0)
    adaptive_clip_grad_([*encoder.parameters(), *decoder.parameters()], 0.1, head=None)
    ratio = encoder.weight.grad.norm(dim=1) / encoder.weight.norm(dim=1)
    torch.testing.assert_close(ratio, torch.full((3,), 0.1))


@pytest.mark.parametrize("items", [[{"params": []}], ["weight"]])
def test_what_is_no_parameter_is_refused(items):
    with pytest.raises(InputError, match=r"expected parameters, or pairs .*, got (dict|str); pass the model"):
        adaptive_clip_grad_(items, head=None)


def test_the_object_takes_a_model_and_no_iterator_of_parameters():
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module, got generator; pass the model"):
        AdaptiveGradientClipping(nn.Linear(2, 2).parameters(), head=None)
