import pytest
import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.models import count_macs, count_parameters, create_model


@pytest.mark.parametrize(
    ("layer", "input_size", "macs"),
    [
        (nn.Conv1d(2, 3, 5), (2, 9), 5 * 2 * 3 * 5),
        (nn.Conv2d(4, 6, (3, 1), stride=2, groups=2), (4, 7, 8), 3 * 1 * 2 * 6 * 3 * 4),
        (nn.Conv2d(2, 3, 3, padding=1, bias=False), (2, 5, 4), 9 * 2 * 3 * 20),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 8 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 2), 9 * 3 * 4 * 10),
        (nn.Linear(7, 11), (7,), 77),
        (nn.Linear(7, 11), (4, 7), 4 * 77),
        (nn.BatchNorm2d(3), (3, 8, 8), 0),
    ],
)
def test_macs_of_one_layer_by_hand(layer, input_size, macs):
    assert count_macs(layer, input_size) == macs


def test_attention_counts_in_eval_mode_too():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    projections, attention, mlp = 4 * 16 * 16 * 5, 2 * 16 * 5 * 5, 2 * 16 * 32 * 5
    assert count_macs(layer, (5, 16)) == projections + attention + mlp
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_size_and_an_example_are_refused():
    with pytest.raises(InputError, match=r"expected input_size or example, got both \(input_size=\(3,\)\)"):
        count_macs(nn.Linear(3, 3), (3,), example=torch.zeros(1, 3))


def test_a_layer_counts_as_often_as_it_runs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(3, 3)
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.used(x))

    assert count_macs(Twice(), (3,)) == 18


def test_parameters_count_once_when_shared_and_without_buffers():
    layer = nn.Linear(3, 4)
    assert count_parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(4))) == 16 + 8


def test_the_model_comes_back_as_it_was():
    model = create_model("digits_net").train()
    model.bn2.eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    count_macs(model, (1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_model_comes_back_as_it_was_after_an_error():
    model = create_model("digits_net").train()
    with pytest.raises(RuntimeError, match="channels"):
        count_macs(model, (2, 8, 8))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_dtype_is_that_of_the_parameters():
    assert count_macs(create_model("digits_net").double(), (1, 8, 8)) == 1_788_544


def test_an_example_of_any_form_goes_to_the_device_and_only_floating_tensors_to_the_dtype():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear = nn.Embedding(5, 3), nn.Linear(3, 2)

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return self.linear(self.embedding(x["words"]) * x["weights"])

    example = {"words": torch.zeros(1, 4, dtype=torch.int64), "weights": torch.zeros(1, 4, 1)}
    assert count_macs(Words().double(), example=example) == 4 * 3 * 2
    assert count_macs(Words().to("meta"), example=example) == 4 * 3 * 2


def test_the_model_sees_one_example_without_gradients():
    class Witness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape == (1, 2, 3)
            assert not torch.is_grad_enabled()
            assert not self.training
            return x

    assert count_macs(Witness(), (2, 3)) == 0


@pytest.mark.slow
def test_a_compiled_model_counts_like_a_plain_one():
    model = create_model("digits_net").eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():  # as when counting, so that nothing but the hooks asks for another compilation
        compiled(torch.zeros(1, 1, 8, 8))
    assert count_macs(compiled, (1, 8, 8)) == count_macs(model, (1, 8, 8)) == 1_788_544


@pytest.mark.parametrize("size", [(), (3, 0, 32), (3, 32.0, 32), (-1,)])
def test_bad_input_sizes(size):
    with pytest.raises(InputError) as caught:
        count_macs(nn.Identity(), size)
    assert str(size) in str(caught.value)
    assert "without the batch axis" in str(caught.value)
