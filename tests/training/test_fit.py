from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backpass.errors import InputError
from backpass.models import create_model
from backpass.training.classification import Classification
from backpass.training.fit import check_fit
from backpass.training.items import ItemData
from backpass.training.recipe import Run, Runtime
from backpass.training.trainer import Trainer


def check(name, model, image, num_classes, images):
    check_fit(name, model, Classification(), ItemData("data", [0], [0], num_classes, image), images)


def test_models_that_take_the_images_are_left_unchanged():
    model = nn.Sequential(create_model("digits_net", num_classes=3), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    check("digits_net", model, (1, 8, 8), 3, images=16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_the_random_state_of_the_gpu_is_restored(monkeypatch):
    """Fake CUDA tensors stand for the GPU, and a list for its generator."""
    state, drawn = [0], nn.Module()
    drawn.forward = lambda x: state.append(1) or x
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: list(state))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda before, device: state.__setitem__(slice(None), before))
    with FakeTensorMode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, device="cuda"), drawn)
        check("drawing", model, (1, 8, 8), 3, images=16)
    assert state == [0]


def test_images_of_another_size_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match=r"takes images of 1x9x8 .*, got 'flat', which raised RuntimeError: .*shapes"):
        check("flat", model, (1, 9, 8), 3, images=16)


def test_anything_but_one_logit_for_each_class_is_refused():
    with pytest.raises(InputError, match=r"returns 4 logits for each image, got 'flat', which returned \(1, 3\)"):
        check("flat", nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8), 4, images=16)


@pytest.mark.parametrize(("images", "refused"), [(1, True), (2, False)])
def test_a_normalisation_of_one_value_is_refused(images, refused):
    model = nn.Sequential(nn.Conv2d(1, 2, 8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    if refused:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(torch.zeros(images, 1, 8, 8))
        with pytest.raises(InputError, match=r"value per channel to normalise in '1' of 'net', got one image of 1x8x8"):
            check("net", model, (1, 8, 8), 3, images)
    else:
        model(torch.zeros(images, 1, 8, 8))
        check("net", model, (1, 8, 8), 3, images)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("timm/test_vit", r"takes images of 1x8x8 .*, got 'timm/test_vit', which raised AssertionError"),
        ("vgg11_bn", r"expected images of shape \(N, C, 32, 32\).*, got \(1, 1, 8, 8\)"),
        ("timm/test_resnet", "got one image of 1x8x8 in a forward pass; raise batch_size or lower micro_batches"),
    ],
)
def test_a_run_is_refused_before_it_is_trained(model, text, recipe, images):
    run = Run(replace(recipe, model=model, batch_size=4, micro_batches=4))
    with pytest.raises(InputError, match=text):
        Trainer(run, images, runtime=Runtime(device="cpu"))
