"""What the scalings of a model are made of, on inputs for which it is known."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from backpass.__main__ import main
from backpass.errors import InputError
from backpass.experiments import RECIPES, inspect_scalings, train
from backpass.experiments.inspection_inputs import generated_batches, images_below, input_form, load_model
from backpass.models import create_model
from backpass.sgs import measure_scalings
from backpass.training.checkpoint import save_weights
from backpass.training.recipe import DataSettings, Runtime


def conv(**arguments):
    return nn.Sequential(nn.Conv2d(1, 4, 3, **arguments))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(count, size):
    """Images in which neighbours share much."""
    images = noise(count, 1, size, size)
    return nn.functional.interpolate(images[..., : size // 4, : size // 4], size=size, mode="bilinear")


def test_the_scaling_is_the_one_that_sgs_measures():
    model, batches = conv(padding=1), list(smooth(32, 16).split(8))
    (layer,) = inspect_scalings(model, batches)
    scaling = measure_scalings(model, batches).scalings["0.weight"]
    assert layer.scaling == scaling.tolist()
    assert (layer.kernel, layer.stride, layer.zeros, layer.map_size) == ((3, 3), (1, 1), ((1, 1), (1, 1)), (16, 16))
    assert layer.centre == scaling[1, 1].item()
    assert layer.edge == pytest.approx(torch.stack([scaling[0, 1], scaling[1, 0], scaling[1, 2], scaling[2, 1]]).mean())
    assert layer.corner == pytest.approx(scaling[::2, ::2].mean())
    assert layer.evenness == pytest.approx((9 - layer.centre) / 8 / layer.centre)


def test_smooth_images_owe_their_scaling_to_neither_padding_nor_chance():
    (layer,) = inspect_scalings(conv(padding=1), list(smooth(64, 32).split(16)))
    assert layer.evenness > 0.5
    assert layer.padding < 0.1
    assert layer.chance < 0.05
    assert layer.interior_evenness == pytest.approx(layer.evenness, rel=0.15)


def test_noise_in_a_frame_of_zeros_owes_all_to_padding():
    (layer,) = inspect_scalings(conv(padding=3), list(noise(512, 1, 6, 6).split(128)))
    assert layer.padding > 0.85
    assert layer.padding + layer.chance == pytest.approx(1, abs=0.1)
    assert layer.interior_evenness < 0.2 * layer.evenness


def test_few_pixels_of_noise_without_padding_owe_all_to_chance():
    (layer,) = inspect_scalings(conv(), list(noise(4, 1, 6, 6).split(2)))
    assert layer.chance > 0.8
    assert layer.padding == 0
    (more,) = inspect_scalings(conv(), list(noise(400, 1, 6, 6).split(200)))
    assert more.evenness < 0.25 * layer.evenness


def test_the_shift_is_the_largest_difference_between_halves():
    halves = [smooth(16, 16), noise(16, 1, 16, 16)]
    model = conv(padding=1)
    (layer,) = inspect_scalings(model, halves)
    first, second = (measure_scalings(model, [half]).scalings["0.weight"] for half in halves)
    assert layer.shift == pytest.approx((first - second).abs().max().item())
    assert layer.shift > 0.5
    (alone,) = inspect_scalings(model, halves[:1])
    assert alone.shift is None
    assert alone.scaling == first.tolist()


def test_layers_that_no_batch_reaches_have_no_scaling():
    class OneOfTwo(nn.ModuleList):
        def forward(self, x):
            return self[0](x)

    model = OneOfTwo([nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)])
    reached, unused = inspect_scalings(model, [noise(4, 1, 8, 8)])
    assert reached.scaling is not None
    assert (unused.scaling, unused.centre, unused.map_size) == (None, None, ())


def test_edges_and_corners_of_other_kernels():
    layers = inspect_scalings(
        nn.Sequential(nn.Conv2d(1, 2, (1, 5), padding=(0, 2)), nn.Conv2d(2, 2, 7, padding=3, stride=2)),
        list(smooth(8, 16).split(4)),
    )
    row, large = layers
    scaling = torch.tensor(row.scaling)
    assert row.corner is None
    assert row.edge == pytest.approx(scaling[0, [0, 4]].mean().item())
    scaling = torch.tensor(large.scaling)
    assert large.edge == pytest.approx(scaling[[0, 3, 3, 6], [3, 0, 6, 3]].mean().item())
    assert large.corner == pytest.approx(scaling[[0, 0, 6, 6], [0, 6, 0, 6]].mean().item())
    assert large.stride == (2, 2)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_models_of_timm(name, tmp_path, capsys):
    output = tmp_path / "a.png"
    arguments = ["inspect", f"timm/{name}", "--shape", "3", "32", "32", "--count", "4", "--batch-size", "2"]
    assert main([*arguments, "--output", str(output), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["shape"] == [3, 32, 32]
    assert content["layers"]
    for layer in content["layers"]:
        total = torch.tensor(layer["scaling"])
        assert total.mean() == pytest.approx(1, abs=1e-4)
        assert layer["shift"] is not None
    assert output.read_bytes().startswith(b"\x89PNG")


def test_few_images_are_two_halves_too(tmp_path, capsys):
    for number in range(6):
        Image.effect_noise((8, 8), 50 + number).save(tmp_path / f"{number}.png")
    arguments = ["inspect", "digits_net", "--images", str(tmp_path), "--output", str(tmp_path / "a.svg"), "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["count"] == 6
    assert all(layer["shift"] is not None for layer in content["layers"])


def test_a_net_for_volumes():
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, stride=2))
    form = input_form(model, (1, 8, 12, 12))
    layers = inspect_scalings(model, generated_batches(form, 8, 4))
    assert [layer.kernel for layer in layers] == [(3, 3, 3), (3, 3, 3)]
    scaling = torch.tensor(layers[0].scaling)
    assert layers[0].edge == pytest.approx(
        scaling[[0, 2, 1, 1, 1, 1], [1, 1, 0, 2, 1, 1], [1, 1, 1, 1, 0, 2]].mean().item()
    )
    assert layers[0].corner == pytest.approx(scaling[::2, ::2, ::2].mean().item())
    assert input_form(model).shape == (1, 16, 32, 32)
    assert input_form(nn.Conv1d(2, 1, 3)).shape == (2, 1024)


def test_inputs_of_one_pixel_are_zero():
    (batch,) = generated_batches(input_form(conv(), (1, 1, 1)), 2, 2)
    assert torch.equal(batch, torch.zeros(2, 1, 1, 1))


def test_generated_inputs_have_the_spectrum_of_images():
    (batch,) = generated_batches(input_form(conv(), (1, 64, 64)), 32, 32)
    power = torch.fft.fft2(batch).abs().square().mean((0, 1))
    assert power[0, 4] / power[0, 16] == pytest.approx(16, rel=0.3)  # amplitude 1/f: a quarter at four times f
    assert batch.mean().abs() < 1e-5
    assert batch.std().item() == pytest.approx(1, abs=0.01)


def test_a_run_is_inspected_with_the_weights_it_has_trained(tmp_path, capsys):
    recipe = replace(RECIPES["digits"], epochs=1, data=DataSettings(limit_train=64, limit_test=20))
    train(recipe, tmp_path / "run", method="dyrep", runtime=Runtime("cpu"))
    model = load_model(str(tmp_path / "run"))
    assert not model.training
    for index in range(3):
        image = Image.fromarray((255 * smooth(1, 16)[0, 0].sigmoid()).to(torch.uint8).numpy())
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / "a" / f"{index}.png")
    arguments = ["inspect", str(tmp_path / "run" / "model.safetensors"), "--images", str(tmp_path / "images")]
    output = tmp_path / "a.svg"
    assert main([*arguments, "--batch-size", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "conv1" in printed
    assert "3 images of" in printed
    assert "1x16x16" in printed
    assert main([*arguments, "--weights", "x", "--output", str(output)]) == 2
    assert "expected no weights for the run" in capsys.readouterr().err


def test_weights_tell_how_many_channels_and_classes_a_model_has(tmp_path):
    model = create_model("digits_net", num_classes=7, in_channels=2)
    save_weights(tmp_path / "w.safetensors", model.state_dict())
    loaded = load_model("digits_net", str(tmp_path / "w.safetensors"))
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "wrapped.pt")
    wrapped = load_model("digits_net", str(tmp_path / "wrapped.pt"))
    torch.testing.assert_close(wrapped.state_dict(), loaded.state_dict())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match=r"expected weights of resnet20, got .*w.safetensors"):
        load_model("resnet20", str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match="expected a run folder with config"):
        load_model(str(tmp_path))


def test_a_model_of_the_users_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_net_to_inspect.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv1d(2, 3, 5, padding=2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["inspect", "own_net_to_inspect:build", "--count", "4", "--batch-size", "2"]) == 0
    assert "4 generated inputs, 2x1024" in capsys.readouterr().out
    assert (tmp_path / "scalings.svg").is_file()


def test_what_does_not_fit_is_named(tmp_path, capsys):
    for arguments, text in [
        (
            ["--shape", "3", "32"],
            "expected a shape of 3 numbers from 1 to 1048576, channels and 2 spatial axes, got [3, 32]",
        ),
        (["--shape", "9" * 30, "4", "4"], "expected a shape of 3 numbers from 1 to 1048576"),
        (["--images", str(tmp_path)], "expected images (.jpg, "),
        (["--output", "a.txt"], "expected a path that ends with .png, .svg, .pdf, got a.txt"),
        (["--count", "0"], "expected count to be an integer >= 1"),
        (["--count", "1000000000"], "expected inputs of at most 4 GiB in all, got 1000000000 of shape (3, 64, 64)"),
        (["--shape", "3", "999999", "9999"], "lower the number of images or the shape"),
    ]:
        assert main(["inspect", "resnet20", *arguments]) == 2
        assert text in capsys.readouterr().err
    with pytest.raises(InputError, match="expected at least one batch, got none"):
        inspect_scalings(conv(), [])
    with pytest.raises(InputError, match="expected a model with convolutions, got Linear"):
        input_form(nn.Linear(1, 1))


def test_images_behind_a_link_to_a_folder_are_found(tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.PNG").touch()
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "b.txt").touch()
    (tmp_path / "chosen" / "link").symlink_to(tmp_path / "photographs")
    assert images_below(tmp_path / "chosen") == [tmp_path / "chosen" / "link" / "a.PNG"]
