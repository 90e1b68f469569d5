import sys

import numpy as np
import pytest
import torch
from torch import nn

from backpass.errors import InputError, MissingExtraError
from backpass.models import create_model, list_models, register_model, registry


@pytest.fixture
def own_table(monkeypatch):
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))


@pytest.mark.usefixtures("own_table")
def test_a_registered_builder_is_listed_and_created():
    @register_model
    def my_linear(num_classes: int = 4, in_channels: int = 3) -> nn.Linear:
        return nn.Linear(in_channels, num_classes)

    assert "my_linear" in list_models()
    assert tuple(create_model("my_linear").weight.shape) == (4, 3)
    assert tuple(create_model("my_linear", num_classes=2, in_channels=5).weight.shape) == (2, 5)


@pytest.mark.usefixtures("own_table")
def test_a_taken_name_is_refused_and_the_first_builder_stays():
    builder = registry._builders["digits_net"]

    def digits_net() -> nn.Module:
        return nn.Identity()

    with pytest.raises(InputError, match="expected a new name, got 'digits_net', which has a model already"):
        register_model(digits_net)
    assert registry._builders["digits_net"] is builder


def test_listing():
    names = list_models()
    assert names == sorted(names)
    assert {"vgg16_small", "resnet18", "digits_net"} <= set(names)
    assert list_models("vgg1[13]_bn") == ["vgg11_bn", "vgg13_bn"]
    assert list_models("no such model") == []
    assert not any(name.startswith("timm/") for name in names)


def test_an_unknown_name_lists_close_names_and_how_to_list():
    with pytest.raises(InputError) as caught:
        create_model("resnet81")
    message = str(caught.value)
    assert "unknown model 'resnet81'" in message
    assert "resnet18" in message
    assert "backpass.models.list_models()" in message


def test_an_unknown_name_with_nothing_close():
    with pytest.raises(InputError) as caught:
        create_model("qqqqqqqq")
    assert str(caught.value) == "unknown model 'qqqqqqqq'; backpass.models.list_models() lists all names"


@pytest.mark.parametrize("value", [0, -3, 2.5, "10", True])
@pytest.mark.parametrize("key", ["num_classes", "in_channels"])
def test_counts_must_be_positive_integers(key, value):
    with pytest.raises(InputError) as caught:
        create_model("digits_net", **{key: value})
    expected = f"expected {key} of 'digits_net' to be a positive integer, got {value!r}; choose another number"
    assert str(caught.value) == expected


def test_counts_may_be_integers_of_numpy():
    assert create_model("digits_net", num_classes=np.int64(3)).fc.out_features == 3


def test_an_unknown_argument_is_named_with_those_that_exist():
    with pytest.raises(InputError) as caught:
        create_model("vgg11_small", dropout=0.5)
    message = str(caught.value)
    assert "expected arguments of 'vgg11_small', which are num_classes, in_channels, hidden_layers" in message
    assert "'dropout'" in message


def test_a_type_error_inside_a_builder_is_not_disguised(own_table):
    @register_model
    def broken(num_classes: int = 1, in_channels: int = 1) -> nn.Module:
        raise TypeError("from within")

    with pytest.raises(TypeError, match="from within") as caught:
        create_model("broken")
    assert not isinstance(caught.value, InputError)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for call in (lambda: create_model("timm/resnet18"), lambda: list_models("timm/*")):
        with pytest.raises(MissingExtraError, match=r"models named timm/\.\.\. need timm.*backpass\[lab\]"):
            call()


def test_timm_models_take_our_arguments():
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = create_model("timm/resnet18", num_classes=12, in_channels=4, zero_init_last=False)
    assert model.conv1.in_channels == 4
    assert model.fc.out_features == 12
    with torch.device("meta"):
        assert create_model("timm/resnet18").fc.out_features == 1000


def test_arguments_reach_timm():
    """timm starts each block's last normalisation at zero, the published reference does not."""
    pytest.importorskip("timm")
    for arguments, expected in ({"zero_init_last": False}, 1.0), ({}, 0.0):
        weight = create_model("timm/resnet18", **arguments).layer1[0].bn2.weight
        assert torch.equal(weight, torch.full_like(weight, expected))


def test_an_argument_that_a_timm_model_lacks_is_named():
    pytest.importorskip("timm")
    with pytest.raises(
        InputError, match=r"builds as 'resnet18' with .*, zero_init=False, got TypeError: .*'zero_init'"
    ):
        create_model("timm/resnet18", zero_init_last=False, zero_init=False)


@pytest.mark.parametrize("name", ["foo:bar", "local-dir:no/such/folder", ":"])
def test_unknown_timm_sources_are_named(name):
    pytest.importorskip("timm")
    with pytest.raises(InputError, match=f"expected a model that timm builds as '{name}' with .*choose another model"):
        create_model(f"timm/{name}", num_classes=3)


def test_an_unknown_timm_model_lists_close_names():
    pytest.importorskip("timm")
    with pytest.raises(InputError) as caught:
        create_model("timm/resnet81")
    message = str(caught.value)
    assert "'timm/resnet81'" in message
    assert "timm/resnet18" in message
    assert "list_models('timm/*')" in message


def test_timm_names_are_listed_on_request():
    pytest.importorskip("timm")
    names = list_models("timm/resnet1?")
    assert "timm/resnet18" in names
    assert all(name.startswith("timm/resnet1") and len(name) == len("timm/resnet18") for name in names)


def test_an_import_path_that_is_no_function_is_refused():
    with pytest.raises(InputError, match=r"expected model 'math:pi' to be a function that returns a model, got 3.14"):
        create_model("math:pi")
    with pytest.raises(InputError, match=r"expected 'math:gcd' to return a torch.nn.Module, got int; return the model"):
        create_model("math:gcd")
