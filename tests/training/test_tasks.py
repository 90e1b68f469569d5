"""Tasks of the user's own in the loop: any form of batch, their own loss and metric, named by import paths."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from backpass._internal.batches import copied
from backpass.errors import InputError
from backpass.pgt import power_grad_binary_cross_entropy_with_logits
from backpass.training import DataSettings, OptimizerSettings, Recipe, Run, Runtime, SgsSettings, Trainer, import_path
from backpass.training.batches import move, split_batch
from backpass.training.datasets import load_dataset
from backpass.training.tasks import build_task
from training.own import BrightThirds, Smoothed, Unpaired, stripes, two_heads

CPU = Runtime(device="cpu", workers=0)
OWN = Recipe(
    task=import_path(BrightThirds),
    task_args=(("any_weight", 0.25),),
    model=import_path(two_heads),
    data=DataSettings(name=import_path(stripes), args=(("train", 32),)),
    epochs=3,
    batch_size=16,
    optimizer=OptimizerSettings(lr=0.5),
    sgs=SgsSettings(warmup=0, every=1, batches=1),
)


def data_of(recipe):
    return load_dataset(recipe.data.name, arguments=dict(recipe.data.args))


def trained(method="plain", recipe=OWN, runtime=CPU):
    trainer = Trainer(Run(recipe, method), data_of(recipe), runtime=runtime)
    return trainer, trainer.fit()


def test_a_recipe_names_task_model_and_data_by_import_paths():
    trainer, outcome = trained()
    assert isinstance(trainer.task, BrightThirds)
    assert trainer.task.any_weight == 0.25
    assert len(trainer.data.train) == 32
    assert [set(record) & {"train_loss", "test_exact_match", "train_exact_match"} for record in outcome.history] == [
        {"train_loss", "test_exact_match"}
    ] * 3
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
    assert 0 <= outcome.history[-1]["test_exact_match"] <= 1


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": True}])
def test_batches_of_any_form_in_every_runtime(changes):
    _, outcome = trained(method="sgs", runtime=replace(CPU, **changes))
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]


def test_pgt_alters_every_head_of_a_binary_cross_entropy():
    trainer = Trainer(Run(OWN, "pgt"), data_of(OWN), runtime=CPU)
    inputs, target = next(iter(trainer.loaders.train))
    output = trainer.model(inputs)
    heads = [output["thirds"], output["any"]]
    found = torch.autograd.grad(trainer.criterion(output, target), heads, retain_graph=True)
    powered = partial(power_grad_binary_cross_entropy_with_logits, alpha=OWN.pgt.alpha)
    expected = [
        torch.autograd.grad(weight * powered(output[name], target[name]), output[name], retain_graph=True)[0]
        for name, weight in (("thirds", 1.0), ("any", 0.25))
    ]
    plain = torch.autograd.grad(trainer.task.loss(output, target), heads)
    for own, same, other in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(own, same)
        assert not torch.allclose(own, other)


def test_micro_batches_have_the_gradient_of_the_batch():
    whole = Trainer(Run(OWN), data_of(OWN), runtime=CPU)
    parts = Trainer(Run(replace(OWN, micro_batches=4)), data_of(OWN), runtime=CPU)
    batch = next(iter(whole.loaders.train))
    for trainer in (whole, parts):
        trainer.model.eval()  # batch statistics would depend on the parts
    torch.testing.assert_close(whole._step(*batch), parts._step(*batch))
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict())
    assert [len(piece["image"]) for piece, _ in split_batch(batch, 4)] == [4] * 4


def test_names_of_examples_are_cut_with_their_batch():
    inputs = {"image": torch.arange(5), "name": list("abcde"), "sides": ("left", "right"), "scale": [1.0, 2.0]}
    pieces = split_batch((inputs, torch.arange(5)), 2)
    assert [piece["name"] for piece, _ in pieces] == [["a", "b", "c"], ["d", "e"]]
    assert [target.tolist() for _, target in pieces] == [[0, 1, 2], [3, 4]]
    assert all(piece["sides"] == ("left", "right") and piece["scale"] == [1.0, 2.0] for piece, _ in pieces)
    words = split_batch((list("abcd"), torch.arange(4)), 2)
    assert [piece for piece, _ in words] == [["a", "b"], ["c", "d"]]


class Views(tuple):
    """A tuple with a constructor of its own."""

    def __new__(cls, left, right):
        return super().__new__(cls, (left, right))

    def __init__(self, left, right):
        self.names = ("left", "right")


@pytest.mark.parametrize("pair", [Views(torch.arange(4), torch.arange(4, 8)), torch.arange(8).view(4, 2).max(1)])
def test_tuples_of_every_type_are_cut_moved_and_copied(pair):
    pieces = [piece for piece, _ in split_batch((pair, torch.arange(4)), 2)]
    others = [*pieces, move(pair, torch.device("meta")), copied(pair)]
    assert {type(other) for other in others} == {type(pair)}
    for part, *cut, moved, same in zip(pair, *others, strict=True):
        assert torch.equal(torch.cat(cut), part)
        assert moved.device.type == "meta"
        assert torch.equal(same, part)
        assert same is not part
    assert all(getattr(other, "names", None) == getattr(pair, "names", None) for other in others)


def test_an_interrupted_run_of_an_own_task_resumes(tmp_path):
    straight, outcome = trained("sgs+pgt")
    first = Trainer(Run(OWN, "sgs+pgt"), data_of(OWN), runtime=CPU, folder=tmp_path)

    def stop(record):
        if record["epoch"] == 0:
            raise KeyboardInterrupt

    first.on_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = Trainer(Run(OWN, "sgs+pgt"), data_of(OWN), runtime=CPU, folder=tmp_path)
    assert second.resume()
    second.fit()
    torch.testing.assert_close(second.model.state_dict(), straight.model.state_dict(), rtol=0, atol=0)
    assert second.history[-1]["train_loss"] == outcome.history[-1]["train_loss"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"task": "detection"}, "one of the tasks classification, segmentation, keypoints or an import path"),
        (
            {"task": "training.nothing:Task"},
            "'training.nothing:Task' to name an object that can be imported .*No module",
        ),
        ({"task": "training.own:Nothing"}, "got a module without 'Nothing'"),
        ({"task": "training.own:stripes"}, "to be a subclass of backpass.training.Task, got <function stripes"),
        ({"task_args": (("sharpness", 1),)}, "'BrightThirds', which are any_weight, got others: .*'sharpness'"),
        (
            {"task": "segmentation", "task_args": (("crop_height", 9), ("crop_width", 17)), "model": "digits_net"},
            "returns logits of shape \\(1, 3, 9, 17\\) .*, got 'digits_net', which returned tensor of shape \\(1, 3\\)",
        ),
        (
            {"task": "keypoints", "task_args": ()},
            "a data set of persons with joints, such as mpii:PATH or lsp:PATH, got own stripes",
        ),
        ({"model": "training.own:Stripes"}, "arguments of 'training.own:Stripes', which are count, side, got others"),
        ({"model": "training.own:nothing"}, "got a module without 'nothing'"),
        ({"task": import_path(Unpaired), "task_args": ()}, "pairs of an input and a target, got batches of tensor"),
    ],
)
def test_what_is_no_task_model_or_example_is_refused(changes, text):
    recipe = replace(OWN, **changes)
    with pytest.raises(InputError, match=text):
        trained(recipe=recipe)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("training.own:stripes", {"rows": 3}, "'training.own:stripes', which are train, test, got others"),
        ("training.own:two_heads", {}, "to return a backpass.training.ItemData or ImageData, got TwoHeads"),
        ("training.own:stripes", {"train": 0}, "items in the train split of own stripes, got none"),
        ("digits", {"rows": 3}, "'digits' without arguments, got \\['rows'\\]"),
        ("nowhere", {}, "or an import path package.module:function, got 'nowhere'"),
    ],
)
def test_what_is_no_data_set_is_refused(name, arguments, text):
    with pytest.raises(InputError, match=text):
        load_dataset(name, arguments=arguments)


def test_items_are_held_out_and_limited():
    data = load_dataset(
        "training.own:stripes", arguments={"train": 40}, split_validation=0.25, limit_train=7, limit_test=3
    )
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 10, 3)
    held, kept = set(data.validation.indices), {data.train.dataset.indices[i] for i in data.train.indices}
    assert not held & kept
    with pytest.raises(InputError, match="1 <= limit_test <= 16, the number of items in the split, got 17"):
        stripes().reduced(0.0, None, 17, 0)
    with pytest.raises(InputError, match="<= 30, the number of items in the split without the 10 held out for valid"):
        stripes(train=40).reduced(0.25, 31, None, 0)


def test_the_task_of_a_recipe_without_one_is_classification(images):
    assert build_task(Recipe(label_smoothing=0.1), images).label_smoothing == 0.1


def test_an_own_task_has_the_label_smoothing_of_the_recipe_or_refuses_it():
    smoothed = replace(OWN, task=import_path(Smoothed), label_smoothing=0.1)
    assert build_task(smoothed, stripes()).label_smoothing == 0.1
    assert build_task(replace(smoothed, label_smoothing=0.0), stripes()).label_smoothing == 0.0
    named = replace(smoothed, task_args=(("label_smoothing", 0.3),))
    assert build_task(named, stripes()).label_smoothing == 0.3
    with pytest.raises(InputError, match=r"label_smoothing 0 with BrightThirds, .* got 0.1; leave it out, or give"):
        build_task(replace(OWN, label_smoothing=0.1), stripes())


def test_an_object_without_a_name_of_its_own_has_no_import_path():
    with pytest.raises(InputError, match=r"that can be imported by its name, got <function .*lambda"):
        import_path(lambda: None)


def test_statistics_of_one_process_need_no_synchronisation():
    trainer, _ = trained(recipe=replace(OWN, sync_batch_norm=True, epochs=1))
    assert type(trainer.model.norm) is torch.nn.BatchNorm2d
