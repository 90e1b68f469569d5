"""What is inspected: the model by its name or its run, and images for it, of a folder or generated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from backpass._internal.imports import import_lab
from backpass.errors import InputError
from backpass.experiments.files import files_below
from backpass.experiments.serialization import from_json
from backpass.models import create_model
from backpass.training.image_folder import IMAGENET_MEAN, IMAGENET_STD, decode_image
from backpass.training.recipe import Run
from backpass.training.weights import WEIGHTS_FILE, read_weights, without_wrappers

__all__ = ["InputForm", "folder_batches", "generated_batches", "images_below", "input_form", "load_model"]

_CONFIG = "config.json"
_LARGEST = 224
_LONGEST = 1 << 20
_MEMORY = 4 << 30
_SIDES = {1: (1024,), 2: (64, 64), 3: (16, 32, 32)}


@dataclass(frozen=True)
class InputForm:
    """The form of one input of a model.

    Attributes:
        shape: channels, then the spatial axes.
        mean: of each channel, as a fraction of white, subtracted from images.
        std: by which they are divided then.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def load_model(name: str, weights: str | None = None) -> nn.Module:
    """Return a model to inspect, in eval mode.

    Args:
        name: a name of :func:`backpass.models.create_model` (``resnet20``, ``timm/resnet18``,
            ``package.module:function``); or a run folder, or the weights in it, for the plain network that its run has
            trained.
        weights: trained weights (:func:`backpass.training.weights.read_weights`) that replace those that are freshly
            drawn, all of them; not for a run.

    Raises:
        InputError: an unknown model, or weights of another one.
    """
    path = Path(name)
    folder = path.parent if path.name == WEIGHTS_FILE else path
    if (folder / _CONFIG).is_file():
        if weights is not None:
            raise InputError(
                f"expected no weights for the run {folder}, which has its own, got {weights!r}; leave one out"
            )
        run = from_json(Run, (folder / _CONFIG).read_bytes(), str(folder / _CONFIG))
        return _with_weights(run.recipe.model, dict(run.recipe.model_args), str(folder))
    if path.is_dir() or path.suffix == ".safetensors":
        raise InputError(
            f"expected a run folder with {_CONFIG} and {WEIGHTS_FILE} at {name}, got none; name a model, and give the "
            "file as weights"
        )
    if weights is not None:
        return _with_weights(name, {}, weights)
    return create_model(name).eval()


def _with_weights(name: str, arguments: dict[str, Any], source: str) -> nn.Module:
    """Return the model whose parameters have the shapes of the weights, with these weights."""
    model = create_model(name, **arguments)
    found = without_wrappers(read_weights(source), model.state_dict())
    # The weights alone tell for how many channels and classes the model was built.
    differing = {
        n: (p.shape, found[n].shape) for n, p in model.named_parameters() if n in found and p.shape != found[n].shape
    }
    first = _first_conv(model).weight
    named = dict(model.named_parameters())
    for key, (own, other) in differing.items():
        if named[key] is first and own[1] != other[1]:
            arguments = arguments | {"in_channels": other[1]}
        elif own[1:] == other[1:]:
            arguments = arguments | {"num_classes": other[0]}
    if differing:
        model = create_model(name, **arguments)
    for key in found.keys() - model.state_dict().keys():  # A fused block has a bias, which the convolution lacks.
        owner = dict(model.named_modules()).get(key.removesuffix(".bias"))
        if isinstance(owner, _ConvNd) and owner.bias is None:
            owner.bias = nn.Parameter(found[key])
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise InputError(
            f"expected weights of {name}, got {source}: {error}; choose the model that they belong to"
        ) from error
    return model.eval()


def input_form(model: nn.Module, shape: Sequence[int] = (), image: Path | None = None) -> InputForm:
    """Return the form of a model's input.

    Args:
        model: timm's models bring their own form; for others the channels and the number of axes are those of the first
            convolution, and mean and standard deviation those of ImageNet.
        shape: channels and spatial axes; default: the model's own, else the size of the image up to 224 pixels a side,
            else 64 pixels a side, 1024 samples on one axis, or 16x32x32 voxels on three.
        image: the first image.

    Raises:
        InputError: the shape does not fit the model's first convolution.
    """
    conv = _first_conv(model)
    axes = len(conv.kernel_size)
    own = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    if shape:
        if len(shape) != axes + 1 or min(shape) < 1 or max(shape) > _LONGEST:
            raise InputError(
                f"expected a shape of {axes + 1} numbers from 1 to {_LONGEST}, channels and {axes} spatial axes, got "
                f"{list(shape)}; correct it"
            )
        found = tuple(shape)
    elif own.get("input_size"):
        found = tuple(own["input_size"])
    else:
        side = _SIDES[axes]
        if image is not None and axes == 2:
            width, height = decode_image(str(image)).size
            side = (min(height, _LARGEST), min(width, _LARGEST))
        found = (conv.in_channels, *side)
    if found[0] in (1, 3):
        mean, std = tuple(own.get("mean") or IMAGENET_MEAN), tuple(own.get("std") or IMAGENET_STD)
        if found[0] == 1:
            mean, std = ((sum(values) / len(values),) for values in (mean, std))
        return InputForm(found, mean, std)
    return InputForm(found, (0.5,) * found[0], (0.25,) * found[0])


def _first_conv(model: nn.Module) -> _ConvNd:
    found = next((module for module in model.modules() if isinstance(module, _ConvNd)), None)
    if found is None:
        raise InputError(f"expected a model with convolutions, got {type(model).__name__} without any; choose another")
    return found


def images_below(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted (:func:`backpass.experiments.files.files_below`).

    Raises:
        InputError: there are none.
    """
    suffixes = import_lab("torchvision.datasets.folder", "torchvision", "image folders").IMG_EXTENSIONS
    files = [path for path in files_below(folder) if path.suffix.lower() in suffixes and path.is_file()]
    if not files:
        raise InputError(f"expected images ({', '.join(suffixes)}) below {folder}, found none; check the folder")
    return files


def folder_batches(folder: Path, files: Sequence[Path], form: InputForm, count: int, batch_size: int) -> list[Tensor]:
    """Return normalised images of a folder, ``count`` of its files, evenly spaced, cropped at the centre to the form.

    Raises:
        InputError: an image that cannot be read, a form that images do not have, or inputs of more than 4 GiB.
    """
    channels, *size = form.shape
    if len(size) != 2 or channels not in (1, 3):
        raise InputError(
            f"expected a model of images with 1 or 3 channels for the folder {folder}, got inputs of shape "
            f"{form.shape}; leave the folder out, to generate inputs"
        )
    operations = import_lab("PIL.ImageOps", "Pillow", "image files")
    chosen = [files[len(files) * place // count] for place in range(count)]
    _check_size(form, count)
    images = torch.empty(len(chosen), channels, *size)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (form.mean, form.std))
    for number, file in enumerate(chosen):
        image = operations.fit(decode_image(str(file)), (size[1], size[0]))
        pixels = numpy.asarray(image.convert("L") if channels == 1 else image, dtype=numpy.float32)
        images[number] = (torch.from_numpy(pixels.copy()).view(*size, channels).permute(2, 0, 1) / 255 - mean) / std
    return list(torch.split(images, batch_size))


def generated_batches(form: InputForm, count: int, batch_size: int) -> list[Tensor]:
    """Return random inputs whose amplitude falls with the spatial frequency f as 1/f, as in natural images.

    Each channel has mean 0 and standard deviation 1 and is drawn by itself (Field, 1987: the amplitude spectra of
    natural scenes fall as 1/f). They have the smoothness of images and none of their content.

    Args:
        form: of each input; any number of axes.
        count: number of inputs.
        batch_size: inputs of a batch.

    Raises:
        InputError: inputs of more than 4 GiB.
    """
    _check_size(form, count)
    channels, *size = form.shape
    noise = torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0))
    axes = list(range(2, noise.ndim))
    squares = torch.zeros(size)
    for axis, length in enumerate(size):
        frequencies = torch.fft.fftfreq(length).square()
        squares = squares + frequencies.view([-1 if other == axis else 1 for other in range(len(size))])
    amplitude = torch.where(squares > 0, squares.clamp(min=1e-12).rsqrt(), 0.0)
    values = torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * amplitude, dim=axes).real
    return list(torch.split(values / values.std(axes, correction=0, keepdim=True).clamp(min=1e-6), batch_size))


def _check_size(form: InputForm, count: int) -> None:
    needed = 4 * count * math.prod(form.shape)
    if needed > _MEMORY:
        raise InputError(
            f"expected inputs of at most {_MEMORY >> 30} GiB in all, got {count} of shape {form.shape}, which take "
            f"{needed / 2**30:.3g} GiB; lower the number of images or the shape"
        )
