"""Both tasks in the loop, on generated scenes in the formats of Cityscapes and MPII: one exam for each."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from examples.generated_scenes.city import write_city
from examples.generated_scenes.models import small_heatmaps, small_pspnet
from examples.generated_scenes.people import write_people
from PIL import Image

from backpass.errors import InputError
from backpass.experiments import read_records
from backpass.training import DataSettings, OptimizerSettings, Recipe, Run, Runtime, SgsSettings, Trainer, import_path
from backpass.training.datasets import load_dataset
from backpass.training.dense.heatmaps import draw_heatmaps
from backpass.training.dense.keypoints import KeypointHeatmaps
from backpass.training.dense.person_crops import PoseTarget
from backpass.training.dense.segmentation import SemanticSegmentation

CPU = Runtime(device="cpu", workers=0)
SGS = SgsSettings(warmup=0, every=1, batches=1, apply="gradient")
SEGMENTATION = Recipe(
    task="segmentation",
    task_args=(("crop_height", 33), ("crop_width", 33), ("evaluation_images", 2)),
    model=import_path(small_pspnet),
    epochs=1,
    batch_size=4,
    optimizer=OptimizerSettings(lr=0.02),
    sgs=SGS,
)
KEYPOINTS = Recipe(
    task="keypoints",
    task_args=(("size", 32), ("sigma", 1.0)),
    model=import_path(small_heatmaps),
    epochs=1,
    batch_size=4,
    optimizer=OptimizerSettings(lr=0.02),
    sgs=SGS,
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Return both recipes on small data sets, by name."""
    root = tmp_path_factory.mktemp("scenes")
    write_city(root / "city", 8, 3)
    write_people(root / "people", 8, 3)
    return {
        "segmentation": replace(SEGMENTATION, data=DataSettings(name=f"cityscapes:{root / 'city'}")),
        "keypoints": replace(KEYPOINTS, data=DataSettings(name=f"mpii:{root / 'people'}")),
    }


def trainer_of(recipe, method="plain", runtime=CPU, **options):
    return Trainer(Run(recipe, method), load_dataset(recipe.data.name), runtime=runtime, **options)


CASES = [("segmentation", "sgs+pgt"), ("keypoints", "sgs")]


@pytest.mark.parametrize(("task", "method"), CASES)
@pytest.mark.parametrize(
    "condition",
    ["float32", "bf16", "channels_last", pytest.param("compiled", marks=pytest.mark.slow), "accumulated"],
)
def test_every_method_trains_under_every_condition(task, method, condition, scenes, monkeypatch):
    runtimes = {
        "bf16": replace(CPU, precision="bf16"),
        "channels_last": replace(CPU, channels_last=True),
        "compiled": replace(CPU, compile=True),
    }
    recipe = replace(scenes[task], micro_batches=2 if condition == "accumulated" else 1)
    compile_model = torch.nn.Module.compile  # With the compiler's own code generation, a minute for each task.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile_model(model, backend="aot_eager"))
    trainer = trainer_of(recipe, method, runtimes.get(condition, CPU))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    outcome = trainer.fit()
    (record,) = outcome.history
    assert record[f"test_{trainer.task.metric}"] >= 0
    assert 0 < record["train_loss"] < float("inf")
    kernels = [name for name, p in trainer.model.named_parameters() if p.ndim == 4]
    assert all(not torch.equal(before[name], dict(trainer.model.named_parameters())[name]) for name in kernels)
    scaled = {name for name in kernels if before[name].shape[-1] > 1 and "up." not in name}
    assert set(outcome.scalings) == scaled
    assert all(scaling.max() > scaling.min() for scaling in outcome.scalings.values())


def test_the_recipe_can_ignore_dilation(scenes):
    """The dilated layers, and no others, then have other scalings."""
    measured, ignored = (
        trainer_of(replace(scenes["segmentation"], sgs=replace(SGS, dilation=dilation)), "sgs").fit().scalings
        for dilation in ("measured", "ignored")
    )
    other = {name for name in measured if not torch.equal(measured[name], ignored[name])}
    assert other == {"backbone.layer4.conv1.weight", "backbone.layer4.conv2.weight"}


def test_pgt_is_refused_on_squared_error(scenes):
    with pytest.raises(InputError, match=r"cross_entropy or binary_cross_entropy, .*, got KeypointHeatmaps"):
        trainer_of(scenes["keypoints"], "pgt")


@pytest.mark.parametrize(("task", "method"), CASES)
def test_an_interrupted_run_resumes_bit_for_bit(task, method, scenes, tmp_path):
    recipe = replace(scenes[task], epochs=2)
    straight = trainer_of(recipe, method)
    straight.fit()

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(recipe, method, folder=tmp_path, on_epoch=stop).fit()
    second = trainer_of(recipe, method, folder=tmp_path)
    assert second.resume()
    second.fit()
    torch.testing.assert_close(second.model.state_dict(), straight.model.state_dict(), rtol=0, atol=0)


def test_the_published_recipe_of_learning_rates(scenes):
    factors = (("pyramid.*", 10.0), ("head.*", 10.0), ("auxiliary.*", 10.0))
    recipe = replace(scenes["segmentation"], optimizer=OptimizerSettings(lr=0.01, lr_factors=factors))
    trainer = trainer_of(recipe)
    rate = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(0.01 if name.startswith("backbone.") else 0.1), name
    with pytest.raises(InputError, match=r"to match a parameter, got \['neck.\*'\] for .* backbone.stem"):
        trainer_of(replace(recipe, optimizer=OptimizerSettings(lr_factors=(("neck.*", 2.0),))))


def test_the_auxiliary_head_is_trained_and_not_deployed(scenes):
    trainer = trainer_of(scenes["segmentation"])
    deployed = trainer.task.deploy(trainer.model)
    assert {name.partition(".")[0] for name in deployed.state_dict()} == {"backbone", "pyramid", "head"}
    assert trainer.model.auxiliary is not None
    batch = torch.randn(2, 3, 33, 33)
    torch.testing.assert_close(deployed.eval()(batch), trainer.model.eval()(batch))


def test_perfect_heat_maps_score_one_and_moved_ones_less(scenes):
    data = load_dataset(scenes["keypoints"].data.name)
    task = KeypointHeatmaps(16, data.pairs, data.not_scored, size=64, sigma=1.0, rounding="nearest")
    loader = trainer_of(scenes["keypoints"]).loaders.test
    loader._examples.prepare = task.prepare
    ((_, target),) = loader
    maps = draw_heatmaps(target.joints / 4, target.visible, (16, 16), 1.0, "nearest")
    for shift, expected in ((0, {"pckh": 1.0, "pckh_weighted": 1.0}), (2, {"pckh": 0.0, "pckh_weighted": 0.0})):
        evaluation = task.evaluation(torch.device("cpu"))
        evaluation.update(maps.roll(shift, -1), target)
        assert evaluation.compute(lambda counts: counts) == expected
    assert task.loss(maps, target) == 0
    assert task.loss(maps.roll(2, -1), target) > 0


def test_maps_that_no_gaussian_reaches_can_be_left_out_of_the_loss():
    """Gaussians cut at 3 pixels: one seen, one hidden, and those left of and below the map by 3 and by 4 pixels."""
    joints = torch.tensor([[2, 2], [2, 2], [-3, 2], [-4, 2], [2, 10], [2, 11]]).float()[None]
    visible = torch.tensor([[True, False, True, True, True, True]])
    target = PoseTarget(4 * joints, visible, *[torch.empty(0)] * 4)
    output = torch.randn(1, 6, 8, 8)
    errors = (output - draw_heatmaps(joints, visible, (8, 8), 1.0)).square().sum((2, 3))
    task = KeypointHeatmaps(6, size=32, sigma=1.0)
    torch.testing.assert_close(task.loss(output, target), errors.sum() / output.numel())
    loss = replace(task, visible_only=True).loss(output, target)
    torch.testing.assert_close(loss, errors[0, [0, 2, 4]].sum() / output.numel() / 2)


def test_evaluation_averages_over_the_mirrored_copy():
    task = KeypointHeatmaps(2, pairs=((0, 1),))
    seen = []

    def forward(inputs):
        seen.append(inputs)
        return torch.cat([inputs, 2 * inputs], 1)

    inputs = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(task.predict(forward, inputs), torch.cat([1.5 * inputs, 1.5 * inputs], 1))
    assert torch.equal(seen[1], seen[0].flip(-1))
    assert torch.equal(replace(task, flip=False).predict(forward, inputs), torch.cat([inputs, 2 * inputs], 1))


def two_convs(num_classes, in_channels):
    """Return a net without batch statistics, so that accumulation changes nothing."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(in_channels, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, num_classes, 1)
    )


def test_accumulated_gradients_are_those_of_the_batch_whatever_is_labelled(scenes):
    """One image is labelled in full, the others ever less, and the last not at all."""
    recipe = replace(scenes["segmentation"], model=import_path(two_convs))
    steps = []
    for parts in (1, 4):
        trainer = trainer_of(replace(recipe, micro_batches=parts))
        inputs, target = next(iter(trainer.loaders.train))
        for number in range(1, 4):
            target[number, : 11 * number] = 255
        assert (target[3] == 255).all()
        loss = trainer._step(inputs, target)
        steps.append({"loss": loss, **trainer.model.state_dict()})
    torch.testing.assert_close(steps[0], steps[1])


def test_pixel_accuracy_of_training_ignores_unlabelled_pixels():
    task = SemanticSegmentation(2)
    logits = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(4, 2, 2, 1)
    target = torch.tensor([[0], [255]]).expand(4, 2, 1)
    assert task.training_score((logits, -logits), target) == 4
    assert task.training_score((-logits, logits), target) == 0
    assert task.training_score(logits, target) == 4


@pytest.mark.parametrize(
    ("task", "arguments", "text"),
    [
        ("segmentation", {"crop_height": 0}, "task_args.crop_height to be an integer >= 1"),
        ("segmentation", {"min_scale": 3.0}, "min_scale <= task_args.max_scale, got 3.0 and 2.0"),
        ("segmentation", {"colour": 1}, "arguments of 'SemanticSegmentation', .*'colour'"),
        ("keypoints", {"rounding": "up"}, "task_args.rounding to be one of down, nearest, got 'up'"),
        ("keypoints", {"size": 36}, "where S divides 36, such as pose_resnet18, got .*small_heatmaps', which returned"),
    ],
)
def test_settings_that_do_not_fit_are_named(task, arguments, text, scenes):
    with pytest.raises(InputError, match=text):
        trainer_of(replace(scenes[task], task_args=tuple(arguments.items())))


def test_label_smoothing_needs_labels(scenes):
    with pytest.raises(InputError, match=r"label_smoothing 0 with KeypointHeatmaps, .* got 0.1; leave it out"):
        trainer_of(replace(scenes["keypoints"], label_smoothing=0.1))


def test_images_with_one_class_are_no_scenes(images):
    for task, text in (("segmentation", "a class for each pixel"), ("keypoints", "persons with joints")):
        with pytest.raises(InputError, match=f"{text}, such as .*, got stripes"):
            Trainer(Run(Recipe(task=task)), images, runtime=CPU)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("cityscapes", {}, "expected cityscapes:PATH, got 'cityscapes' and no root"),
        ("cityscapes:{root}", {}, "to hold leftImg8bit/train/CITY/ and gtFine/train/CITY/, got no leftImg8bit/train"),
        ("cityscapes:{root}", {"id": "raw"}, "arguments of 'cityscapes', which are root, ids, got others"),
        ("camvid:{root}", {"test": "train"}, "test to be 'test' or 'val', the splits of CamVid, got 'train'"),
        ("mpii:{root}", {}, "expected the annotation .*annot/train.json, got none"),
    ],
)
def test_missing_files_are_named(name, arguments, text, tmp_path):
    with pytest.raises(InputError, match=text):
        load_dataset(name.format(root=tmp_path), arguments=arguments)


def test_persons_without_ground_truth_are_refused_before_training(tmp_path):
    write_people(tmp_path, 2, 2)
    (tmp_path / "annot" / "gt_valid.mat").unlink()
    with pytest.raises(InputError, match=r"annot/gt_valid.mat, the ground truth of PCKh, got none; add the file"):
        load_dataset(f"mpii:{tmp_path}")


def test_held_out_persons_need_a_ground_truth_too(scenes):
    with pytest.raises(InputError, match=r"annot/gt_train.mat, .* for held-out persons"):
        load_dataset(scenes["keypoints"].data.name, split_validation=0.25)


def run_example(folder, *options):
    """Run the example of both tasks with its results in a folder; return what it printed."""
    script = Path(__file__).parents[3] / "examples" / "segmentation_and_pose.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--out", str(folder), *options]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_all_four_cells_reach_a_high_miou_and_pckh(tmp_path):
    """The example at its full size: two stages and both tasks."""
    run_example(tmp_path, "--full")
    scores = {
        name: [record.score for record in read_records(tmp_path / name) if record.metric == metric]
        for name, metric in (("small-PSPNet", "mean_iou"), ("small-heat-maps", "pckh"))
    }
    assert [len(found) for found in scores.values()] == [4, 4]
    assert min(scores["small-PSPNet"]) > 0.8
    assert min(scores["small-heat-maps"]) > 0.9


@pytest.mark.slow
def test_the_example_on_camvid(tmp_path):
    numbers = numpy.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for folder, shape, high in ((split, (360, 480, 3), 256), (f"{split}annot", (360, 480), 12)):
            (tmp_path / folder).mkdir()
            for number in range(count):
                pixels = numbers.integers(0, high, shape, dtype=numpy.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / f"{number:06d}.png")
    printed = run_example(tmp_path / "out", "--camvid", str(tmp_path))
    records = read_records(tmp_path / "out" / "small-PSPNet-on-CamVid")
    assert sum(record.metric == "mean_iou" for record in records) == 4
    assert all(record.data.label == "CamVid" for record in records if record.metric == "mean_iou")
    assert "small PSPNet on CamVid, pretrained and fine-tuned with and without sgs" in printed


@pytest.mark.parametrize(
    "item",
    [
        (torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.long)),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.long)),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8)),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.long)),
        (numpy.zeros((3, 8, 8), "uint8"), numpy.zeros((8, 8))),
        {"image": torch.zeros(3, 8, 8, dtype=torch.uint8)},
    ],
)
def test_items_that_are_no_labelled_images_are_refused(item):
    with pytest.raises(InputError, match=r"expected a uint8 image \(3, H, W\) and integer labels \(H, W\) .*, got "):
        SemanticSegmentation(num_classes=2).prepare(item, training=True)
