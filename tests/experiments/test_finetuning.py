"""Two stages: runs that start from the trained weights of others, in one study."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from backpass.errors import BackpassWarning, InputError
from backpass.experiments import Entry, Study, finetuning_study, run_study
from backpass.experiments.run import execute, load_data
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.worker import work
from backpass.models import create_model
from backpass.training import DataSettings, OptimizerSettings, Recipe, Run, Runtime, WeightSettings
from backpass.training.augment import Augmentation
from backpass.training.weights import load_weights, read_weights
from training.loading import loaders_of

CPU = Runtime(device="cpu")
TINY = Recipe(
    epochs=1,
    batch_size=32,
    data=DataSettings(limit_train=64, limit_test=30),
    augmentation=Augmentation(crop_padding=1, cutout=0),
)
STANDING = replace(TINY, optimizer=OptimizerSettings(lr=1e-12, weight_decay=0.0))


@pytest.fixture
def queue(tmp_path):
    """Returns the queue of a study without its runs, and the study."""
    study = finetuning_study("net", TINY, TINY, [0])
    with closing(Queue.create(str(tmp_path), "s", folder=tmp_path, runtime=CPU)) as queue:
        yield queue, study


def test_a_run_starts_from_what_the_run_of_its_seed_has_trained(tmp_path):
    entries = (
        Entry("fine", "fine-tuning", "plain", STANDING, starts_from="first"),  # listed before what it needs
        Entry("first", "pretraining", "plain", TINY),
    )
    result = run_study(Study("two stages", entries, (3, 4)), tmp_path, runtime=CPU)
    result.check()
    sources = [record.run.recipe.weights.source for record in result.records]
    assert sources == ["study:first-seed3", None, "study:first-seed4", None]
    for seed in (3, 4):
        before, after = (load_file(tmp_path / f"{key}-seed{seed}" / "model.safetensors") for key in ("first", "fine"))
        kernels = [name for name, tensor in before.items() if tensor.ndim == 4]
        assert kernels
        for name in kernels:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_the_four_cells(queue):
    _, study = queue
    assert len(study.entries) == 6
    cells = {(e.starts_from, e.method): e.baseline for e in study.entries if e.starts_from}
    assert cells == {
        ("net-pretraining-plain", "plain"): None,
        ("net-pretraining-sgs", "sgs"): "net-plain-then-plain",
        ("net-pretraining-sgs", "plain"): "net-plain-then-plain",
        ("net-pretraining-plain", "sgs"): "net-plain-then-plain",
    }


def test_a_run_waits_for_the_weights_that_it_starts_from(queue):
    queue, study = queue
    queue.fill(reversed(study.runs()))
    first, second = queue.claim(), queue.claim()
    assert [first.run.entry, second.run.entry] == ["net-pretraining-sgs", "net-pretraining-plain"]
    assert queue.claim() is None
    queue.finish(first, 0.5)
    freed = [queue.claim().run, queue.claim().run]
    assert {run.needs for run in freed} == {"net-pretraining-sgs-seed0"}
    assert queue.claim() is None


def test_a_run_fails_with_the_one_that_it_starts_from_and_both_are_tried_again(queue):
    queue, study = queue
    queue.fill(study.runs()[:3])
    queue.fail(queue.claim(), "no such model")
    queue.finish(queue.claim(), 0.5)
    assert queue.claim() is None
    states = {state.run.entry: state for state in queue.states()}
    assert states["net-plain-then-plain"].error == (
        "expected the trained weights of net-pretraining-plain-seed0, which has failed; run it first"
    )
    queue.fill(study.runs()[:3])
    assert queue.claim().run.entry == "net-pretraining-plain"
    assert queue.claim() is None


def test_a_worker_ends_where_no_weights_will_come(queue, tmp_path):
    queue, study = queue
    queue.fill(study.runs()[2:3])
    work(queue, tmp_path, heartbeat=0.01)
    (state,) = queue.states()
    assert state.error.endswith("net-pretraining-plain-seed0, which is not in the study; run it first")


@pytest.mark.parametrize(
    ("links", "text"),
    [
        ({"a": "b", "b": "a"}, "got 'a' from 'b' from 'a'; let one of them start afresh"),
        ({"a": "c"}, "expected starts_from of entry 'a' to be the key of another entry, got 'c'"),
    ],
)
def test_entries_that_cannot_start_are_refused(links, text):
    entries = tuple(Entry(key, key, "plain", TINY, starts_from=links.get(key)) for key in ("a", "b"))
    with pytest.raises(InputError, match=text):
        Study("s", entries, (0,))


def test_an_entry_that_is_tuned_starts_from_none():
    space = (("optimizer.lr", ("0.1", "0.2")),)
    entries = (Entry("a", "a", "plain", TINY), Entry("b", "b", "plain", TINY, space=space, starts_from="a"))
    with pytest.raises(InputError, match="entry 'b' to be tuned or to start from another entry, got both"):
        Study("s", entries, (0,))


def net(classes=3):
    return create_model("digits_net", num_classes=classes)


@pytest.mark.parametrize("form", ["safetensors", "pt", "checkpoint", "wrapped", "run"])
def test_weights_of_every_form(form, tmp_path):
    source = net()
    if form == "run":
        save_file(source.state_dict(), tmp_path / "model.safetensors")
        path = tmp_path
    elif form == "safetensors":
        save_file(source.state_dict(), path := tmp_path / "w.safetensors")
    else:
        state = source.state_dict()
        named = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()} if form == "wrapped" else state
        content = named if form == "pt" else {"state_dict": named, "epoch": 3}
        torch.save(content, path := tmp_path / "w.pth")
    model = net()
    load_weights(model, WeightSettings(str(path)))
    torch.testing.assert_close(model.state_dict(), source.state_dict())


def test_a_part_takes_the_weights_and_what_does_not_fit_is_named(tmp_path):
    save_file(net(5).state_dict(), tmp_path / "model.safetensors")
    model = torch.nn.ModuleDict({"backbone": net(3)})
    fresh = model["backbone"].fc.weight.clone()
    text = (
        r"18 of 20 tensors of backbone start from these weights; not in the weights, and freshly drawn: "
        r"fc.weight of shape \(3, 64\) \(weights: \(5, 64\)\), fc.bias of shape"
    )
    with pytest.warns(BackpassWarning, match=text):
        load_weights(model, WeightSettings(str(tmp_path), "backbone"))
    torch.testing.assert_close(model["backbone"].conv1.weight, read_weights(str(tmp_path))["conv1.weight"])
    assert torch.equal(model["backbone"].fc.weight, fresh)


class Unsafe:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("write", "source", "module", "text"),
    [
        (None, "w.pth", "", "expected weights in a file, in a run folder, .*, got '.*w.pth', where there is no file"),
        (lambda p: p.write_bytes(b"no weights"), "w.pth", "", "w.pth to hold weights as safetensors, or as torch.save"),
        (lambda p: p.write_bytes(b"no weights"), "w.safetensors", "", "w.safetensors to hold weights as safetensors"),
        (lambda p: torch.save({"w": Unsafe()}, p), "w.pth", "", "UnpicklingError"),
        (lambda p: torch.save([1], p), "w.pth", "", "w.pth to hold a state_dict, got list"),
        (lambda p: torch.save({"x": torch.ones(2, 2)}, p), "w.pth", "", "with names such as conv1.weight, .* with x;"),
        (lambda p: torch.save(net().state_dict(), p), "w.pth", "stem", "got 'stem'; choose one of conv1, bn1"),
    ],
)
def test_what_is_no_weights_is_named(write, source, module, text, tmp_path, capsys):
    path = tmp_path / source
    if write is not None:
        write(path)
    with pytest.raises(InputError, match=text):
        load_weights(net(), WeightSettings(str(path), module))
    assert "run" not in capsys.readouterr().out


def test_the_weights_of_a_study_need_its_folder():
    with pytest.raises(InputError, match="expected 'study:a-seed0' in a run that has a folder"):
        load_weights(net(), WeightSettings("study:a-seed0"))


def test_published_weights_that_are_not_there_are_named():
    with pytest.raises(InputError, match="expected timm to have trained weights of 'no_such_net', got RuntimeError"):
        load_weights(net(), WeightSettings("timm/no_such_net"))


def test_a_plain_recipe_names_no_run_of_a_study():
    assert Run(TINY).recipe.weights.study_run is None


def test_the_weights_of_a_run_with_blocks_are_a_start_for_training(tmp_path):
    none = Augmentation(crop_padding=0, flip=False, cutout=0)
    recipe = replace(TINY, epochs=3, data=DataSettings(limit_train=512, limit_test=30), augmentation=none)
    data = load_data(recipe.data)
    execute(Run(recipe, "sgs+acb"), data, tmp_path, runtime=CPU)
    model = create_model("digits_net", num_classes=10)
    load_weights(model, WeightSettings(str(tmp_path)))
    images, _ = next(iter(loaders_of(data, batch_size=512).train))
    with torch.no_grad():
        evaluated, trained = model.eval()(images), model.train()(images)
    assert (trained - evaluated).norm() < 0.3 * (evaluated - evaluated.mean(0)).norm()
