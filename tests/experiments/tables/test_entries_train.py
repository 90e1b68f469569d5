"""Every entry of every table takes one training step on generated images in the formats of its data set."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from examples.generated_scenes.city import write_city
from examples.generated_scenes.people import write_people

from backpass.errors import NoEffectWarning
from backpass.experiments import Entry
from backpass.experiments.tables import TABLES
from backpass.training.datasets import CIFAR_MEAN, CIFAR_STD, load_dataset
from backpass.training.images import FileSplit, ImageData, ImageSplit
from backpass.training.items import Data
from backpass.training.recipe import Run, Runtime
from backpass.training.trainer import Trainer

pytest.importorskip("torchvision")
pytest.importorskip("timm")

# The larger members of families whose smaller ones take their step by default.
SLOW = {
    "nf_resnet50",
    "nonorm_resnet50",
    "pyramidnet110_a270",
    "pyramidnet110_a84",
    "pose_resnet34",
    "pose_resnet50",
    "preactresnet34",
    "pspnet34",
    "pspnet50",
    "resnet34",
    "resnet50",
    "seresnet34",
    "timm/resnet101",
    "vgg19_bn",
}
# Smaller crops: PyTorch's pyramid pooling takes 713 pixels in seconds only on a GPU.
CROPS = {"segmentation": (("crop_height", 65), ("crop_width", 65)), "keypoints": (("size", 64),), "classification": ()}
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> tuple[str, ...]:
    """Four JPEG files of different sizes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    files = []
    for number, (height, width) in enumerate([(70, 90), (90, 70), (100, 100), (64, 80)]):
        # Coarse colours, enlarged: JPEG keeps them, and neighbouring pixels have something in common.
        coarse = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        files.append(str(folder / f"{number}.jpeg"))
        Image.fromarray(coarse.numpy()).resize((width, height)).save(files[-1])
    return tuple(files)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> dict[str, Data]:
    """Cityscapes and MPII in small, in their formats."""
    folder = tmp_path_factory.mktemp("scenes")
    write_city(folder / "cityscapes", 2, 1)
    write_people(folder / "mpii", 2, 1)
    return {name: load_dataset(f"{name}:{folder / name}") for name in ("cityscapes", "mpii")}


def generated(name: str, photos: tuple[str, ...]) -> ImageData:
    classes = CLASSES[name]
    labels = torch.tensor([0, 1, classes // 2, classes - 1])
    class_names = tuple(map(str, range(classes)))
    if name == "imagenet":
        split = FileSplit(photos, labels)
        return ImageData(name, split, split, class_names, (64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    coarse = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = torch.nn.functional.interpolate(coarse, scale_factor=4)
    held = ImageSplit(pixels, labels)
    return ImageData(name, held, held, class_names, (32, 32), CIFAR_MEAN, CIFAR_STD)


def parameters() -> list:
    """Every training that a table asks for, once; those of a search differ in numbers that their steps do not."""
    marks = dict.fromkeys(SLOW, (pytest.mark.slow,))
    chosen = {}
    for table in TABLES.values():
        entries = [e for e in table.entries if e.recipe is not None and e.runs_of is None and e.method != "plain"]
        searched = table.name in ("sgs-figure-7", "sgs-figure-8", "pgt-alpha")
        for entry in entries[:2] if searched else entries:
            chosen.setdefault((entry.recipe, entry.method), (table.name, entry))
    return [
        pytest.param(entry, id=f"{name}: {entry.label}, {entry.method}", marks=marks.get(entry.recipe.model, ()))
        for name, entry in chosen.values()
    ]


@pytest.mark.parametrize("entry", parameters())
def test_a_step_of_every_entry(entry: Entry, photos, scenes):
    recipe, method = entry.recipe, entry.method
    # Four images: no fraction of them is held out, and no limit is above them.
    data = replace(recipe.data, validation=0.0, limit_train=None)
    run = Run(replace(recipe, batch_size=2, data=data, task_args=CROPS[recipe.task]), method, 42)
    runtime = Runtime(device="cpu", workers=0)
    # SGS on the gradient of an optimizer that normalises it: the paper's Table 5 does it, and its card warns of it.
    cancels = "sgs" in method and recipe.sgs.apply == "gradient" and recipe.optimizer.name != "sgd"
    with pytest.warns(NoEffectWarning, match="apply='update'") if cancels else nullcontext():
        trainer = Trainer(run, scenes.get(recipe.data.name) or generated(recipe.data.name, photos), runtime=runtime)
    assert "+".join(trainer.methods) == method
    assert type(trainer.optimizer.optimizer).__name__.lower() == recipe.optimizer.name
    assert ("pgt" in trainer.methods) == (trainer.criterion != trainer.task.loss)
    if "sgs" in trainer.methods:
        sgs = trainer.methods["sgs"]
        assert not sgs.start_epoch(0, trainer._measuring_batches(0))
        assert sgs.start_epoch(1, trainer._measuring_batches(1)) == (run.recipe.sgs.fixed_scaling() is None)
        scalings = list(sgs.sgs.scalings.values())
        assert any(not torch.equal(scaling, torch.ones_like(scaling)) for scaling in scalings)
        assert all(scaling.mean().item() == pytest.approx(1, abs=1e-5) for scaling in scalings)
    kernels = [parameter for parameter in trainer.model.parameters() if parameter.ndim == 4]
    before = [kernel.detach().clone() for kernel in kernels]
    trainer.wrapped.train()
    images, target = next(iter(trainer.loaders.train))
    loss = trainer._step(images, target).item()
    if recipe.task == "classification":
        # An untrained net's loss is near that of a guess.
        guess = math.log(CLASSES[recipe.data.name])
        assert 0.2 * guess < loss < 5 * guess
    else:
        assert 0 < loss < float("inf")
    assert all(kernel.isfinite().all() for kernel in kernels)
    assert all(not torch.equal(old, new) for old, new in zip(before, kernels, strict=True))
