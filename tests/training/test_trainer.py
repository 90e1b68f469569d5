from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from backpass.agc import unitwise_norm
from backpass.errors import DivergedError, InputError, NoEffectWarning, StateError
from backpass.models import create_model
from backpass.training import classification
from backpass.training.checkpoint import load_checkpoint
from backpass.training.items import ItemData
from backpass.training.loader import BatchPlan
from backpass.training.recipe import OptimizerSettings, PgtSettings, Run, Runtime, ScheduleSettings
from backpass.training.trainer import Trainer

CPU = Runtime(device="cpu")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class HostReads(TorchDispatchMode):
    """Counts the operations for whose values the host would wait on an accelerator."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        self.count += masked or name in self.WAITING
        return func(*args, **(kwargs or {}))


def test_training_learns(recipe, images):
    outcome = Trainer(Run(replace(recipe, epochs=8)), images, runtime=CPU).fit()
    assert [record["epoch"] for record in outcome.history] == list(range(8))
    assert outcome.history[-1]["train_loss"] < 0.5 * outcome.history[0]["train_loss"]
    assert outcome.history[-1]["test_accuracy"] > 0.9


def test_an_evaluation_every_few_epochs_and_at_the_end_changes_nothing_else(recipe, images):
    run = Run(replace(recipe, epochs=5), "sgs")
    always = Trainer(run, images, runtime=CPU)
    sometimes = Trainer(run, images, runtime=replace(CPU, evaluate_every=2))
    expected, found = always.fit().history, sometimes.fit().history
    assert [any(name.startswith("test_") for name in record) for record in found] == [False, True, False, True, True]
    for own, other in zip(expected, found, strict=True):
        assert {name: own[name] for name in other if "seconds" not in name} == {
            name: value for name, value in other.items() if "seconds" not in name
        }
    assert same(weights(always), weights(sometimes))
    assert always.traces.traces.reliability == sometimes.traces.traces.reliability != {}


def test_a_run_that_diverges_under_agc_has_diverged(recipe, images):
    settings = replace(recipe, optimizer=replace(recipe.optimizer, lr=1e20))
    with pytest.raises(DivergedError, match="in epoch 0; lower the learning rate"):
        Trainer(Run(settings, "sgs+agc"), images, runtime=CPU).fit()


def test_a_run_that_ends_before_sgs_measures_is_warned_of(recipe, images):
    with pytest.warns(NoEffectWarning, match="1 epochs of training end before scalings are measured, at epoch 1"):
        Trainer(Run(replace(recipe, epochs=1), "sgs"), images, runtime=CPU)


def test_a_hook_that_raises_before_a_save_leaves_the_checkpoint_as_it_is(recipe, images, tmp_path):
    saves = []

    def save():
        saves.append((tmp_path / "checkpoint.pt").is_file())
        if len(saves) == 2:
            raise StateError("not any more")

    trainer = Trainer(Run(replace(recipe, epochs=3)), images, runtime=CPU, folder=tmp_path, on_save=save)
    with pytest.raises(StateError, match="not any more"):
        trainer.fit()
    assert saves == [False, True]
    assert len(load_checkpoint(tmp_path / "checkpoint.pt")["history"]) == 1


def test_the_folder_is_made_before_training_and_not_for_a_run_that_is_refused(recipe, images, tmp_path):
    folder = tmp_path / "runs" / "new"
    with pytest.raises(InputError):
        Trainer(Run(replace(recipe, model="nothing")), images, runtime=CPU, folder=folder)
    assert not folder.parent.exists()
    Trainer(Run(replace(recipe, epochs=1)), images, runtime=CPU, folder=folder).fit()
    assert load_checkpoint(folder / "checkpoint.pt")["history"]
    with pytest.raises(OSError, match=r"checkpoint\.pt"):
        Trainer(Run(recipe), images, runtime=CPU, folder=folder / "checkpoint.pt")


def test_methods_change_training_and_not_the_order_of_data(recipe, images):
    """Before its first measurement SGS is plain training, bit for bit; after it no longer."""
    runs = {}
    for method in ("plain", "sgs", "pgt"):
        trainer = Trainer(Run(recipe, method, 0), images, runtime=CPU)
        states = []
        trainer.on_epoch = lambda _, states=states, trainer=trainer: states.append(weights(trainer))
        trainer.fit()
        runs[method] = states
    assert same(runs["sgs"][0], runs["plain"][0])
    assert not same(runs["sgs"][1], runs["plain"][1])
    assert not same(runs["pgt"][0], runs["plain"][0])


def test_the_trained_model_is_the_plain_one(recipe, images):
    trainer = Trainer(Run(recipe, "sgs+pgt", 0), images, runtime=CPU)
    trainer.fit()
    plain = create_model("digits_net", num_classes=3)
    plain.load_state_dict(trainer.model.state_dict(), strict=True)
    trainer.model.load_state_dict(plain.state_dict(), strict=True)


def test_micro_batches_accumulate_the_same_gradient(recipe, images):
    """Without batch normalisation in the way, the first step of 1, 2 and 4 micro-batches is the same."""
    steps = []
    for parts in (1, 2, 4):
        trainer = Trainer(Run(replace(recipe, micro_batches=parts), "sgs+pgt", 0), images, runtime=CPU)
        trainer.model.eval()
        batch, target = next(iter(trainer.loaders.train))
        loss = trainer._step(batch, target)
        steps.append((loss, weights(trainer)))
    for loss, state in steps[1:]:
        torch.testing.assert_close(loss, steps[0][0])
        torch.testing.assert_close(state, steps[0][1])


def test_order_of_clipping_and_scaling(recipe, images):
    """Scaled then clipped, the norm is a bound; clipped then scaled, it is not."""
    norms = {}
    for before in (False, True):
        settings = replace(recipe, clip_norm=0.01, clip_before_scaling=before)
        trainer = Trainer(Run(settings, "sgs", 0), images, runtime=CPU)
        batch, target = next(iter(trainer.loaders.train))
        trainer.methods["sgs"].start_epoch(1, lambda n, batch=batch: [batch])
        trainer.criterion(trainer.wrapped(batch), target).backward()
        trainer._alter_gradients()
        norms[before] = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    assert norms[False] == pytest.approx(0.01, rel=1e-3)
    assert norms[True] > 0.0105


def test_agc_bounds_the_scaled_gradient(recipe, images):
    trainer = Trainer(Run(recipe, "sgs+agc"), images, runtime=CPU)
    batch, target = next(iter(trainer.loaders.train))
    trainer.methods["sgs"].start_epoch(1, lambda n: [batch])
    (100 * trainer.criterion(trainer.wrapped(batch), target)).backward()
    trainer._alter_gradients()
    kernels = [p for p in trainer.model.parameters() if p.ndim == 4]
    shares = [unitwise_norm(p.grad) / (recipe.agc.clip_factor * unitwise_norm(p).clamp(min=1e-3)) for p in kernels]
    assert max(share.max().item() for share in shares) == pytest.approx(1, rel=1e-4)


def test_the_learning_rate_follows_the_schedule(recipe, images):
    schedule = ScheduleSettings("step", warmup_epochs=1, step_epochs=2, step_factor=0.1)
    trainer = Trainer(Run(replace(recipe, epochs=4, schedule=schedule)), images, runtime=CPU)
    rates = [record["lr"] for record in trainer.fit().history]
    assert rates == pytest.approx([0.05 / len(trainer.loaders.train), 0.05, 0.005, 0.005])


def test_a_checkpoint_of_another_run_is_refused(recipe, images, tmp_path):
    Trainer(Run(replace(recipe, epochs=1), "plain", 0), images, runtime=CPU, folder=tmp_path).fit()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["run"]["seed"] == 0
    other = Trainer(Run(replace(recipe, epochs=1), "plain", 1), images, runtime=CPU, folder=tmp_path)
    with pytest.raises(
        InputError, match=r"the checkpoint belongs to another run: seed: expected 1, received 0; choose another folder"
    ):
        other.resume()


def test_a_diverged_run_stops_with_advice(recipe, images):
    settings = replace(recipe, optimizer=OptimizerSettings(lr=1e30))
    with pytest.raises(
        DivergedError, match=r"finite .*, got train_loss = (nan|inf)\b.* in epoch 0; lower the learning rate \(1e\+30\)"
    ):
        Trainer(Run(settings), images, runtime=CPU).fit()


def test_a_run_that_diverges_in_its_last_step_leaves_no_checkpoint_of_that_epoch(recipe, images, tmp_path):
    settings = replace(recipe, batch_size=48, optimizer=OptimizerSettings(lr=1e20))
    trainer = Trainer(Run(settings), images, runtime=CPU, folder=tmp_path)
    with pytest.raises(DivergedError, match=r"got test_loss = nan, test_calibration_error = nan in epoch 0; lower"):
        trainer.fit()
    assert not trainer.history
    assert not list(tmp_path.iterdir())


def test_bfloat16_and_channels_last_train(recipe, images):
    runtime = Runtime(device="cpu", precision="bf16", channels_last=True)
    trainer = Trainer(Run(recipe, "sgs+pgt", 0), images, runtime=runtime)
    outcome = trainer.fit()
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    kernel = next(p for p in trainer.model.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("field", "value"), [("epochs", 0), ("batch_size", 0), ("micro_batches", 5)])
def test_impossible_recipes(recipe, field, value):
    with pytest.raises(InputError, match=str(value)):
        replace(recipe, **{field: value})


def test_host_reads_are_counted():
    values = torch.arange(3)
    with HostReads() as reads:
        _ = values.sum().item(), bool(values.any()), values.nonzero(), values[values > 1], torch.equal(values, values)
        _ = values[values], values + 1
    assert reads.count == 5


@pytest.mark.parametrize("method", ["plain", "sgs", "pgt", "acb", "dbb", "dyrep"])
def test_a_step_reads_no_value_from_the_device(method, recipe, images):
    trainer = Trainer(Run(recipe, method), images, runtime=CPU)
    batches = trainer.loaders.train.iter_epoch(0)
    trainer._step(*next(batches))
    with HostReads() as reads:
        trainer._step(*next(batches))
    assert reads.count == 0


def test_evaluation_reads_its_results_and_no_value_of_a_batch(recipe, images, monkeypatch):
    monkeypatch.setattr(classification, "_EVALUATION_BATCH_SIZE", recipe.batch_size)
    trainer = Trainer(Run(recipe), replace(images, test=images.train), runtime=CPU)
    assert len(trainer.loaders.test) == 3
    with HostReads() as reads:
        evaluation = trainer.evaluate()
    assert reads.count == len(evaluation) == 3


def test_evaluation_equals_that_of_one_batch(recipe, images, monkeypatch):
    whole = Trainer(Run(recipe), images, runtime=CPU)
    expected = whole.evaluate()
    monkeypatch.setattr(classification, "_EVALUATION_BATCH_SIZE", 4)  # 15 images: the last batch is smaller
    parts = Trainer(Run(replace(recipe, batch_size=4)), images, runtime=CPU)
    parts.model.load_state_dict(whole.model.state_dict())
    assert parts.evaluate() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("size", "batch_size", "expected"),
    [
        *(((1, 8, 8), 4, 512), ((3, 224, 224), 4, 512), ((3, 448, 448), 4, 128)),
        *(((3, 448, 448), 256, 256), ((3, 8192, 8192), 2, 2), ((16,), 4, 512)),
    ],
)
def test_evaluation_batches_of_large_images_are_smaller(size, batch_size, expected):
    split = TensorDataset(torch.zeros(2))
    data = ItemData("any", split, split, num_classes=2, input_size=size)
    assert classification.Classification().evaluation_batch_size(batch_size, 1, data) == expected


def test_the_batches_of_an_epoch_are_not_planned_again_at_each_step(recipe, images, monkeypatch):
    trainer = Trainer(Run(recipe), images, runtime=CPU)
    planned = []
    shards = BatchPlan.shards
    monkeypatch.setattr(BatchPlan, "shards", lambda plan: planned.append(plan) or shards(plan))
    trainer._epoch(0)
    assert len(trainer.loaders.train) == 3
    assert not planned
    assert trainer.loaders.train.plan.shards() == shards(trainer.loaders.train.plan)
    assert len(planned) == 1


@pytest.mark.parametrize("seed", [4295, 2**31, 2**32 - 1])
def test_large_seeds_train(seed, recipe, images):
    record, other = (Trainer(Run(replace(recipe, epochs=1), seed=s), images, runtime=CPU)._epoch(1) for s in (seed, 0))
    assert record["train_loss"] != other["train_loss"]


def outputs_of(trainer, split):
    trainer.model.eval()
    with torch.no_grad():
        batches = [(trainer.model(images), target) for images, target in split]
    return torch.cat([output for output, _ in batches]), torch.cat([target for _, target in batches])


@pytest.mark.parametrize("validation", [False, True])
def test_pgt_is_evaluated_at_alpha_times_the_logits_too(validation, recipe, images):
    data = replace(images, validation=images.test, test=images.train) if validation else images
    name, passes = ("validation" if validation else "test"), []
    settings = replace(recipe, epochs=1, pgt=PgtSettings(alpha=0.4))
    records = {}
    for method in ("plain", "pgt"):
        trainer = Trainer(Run(settings, method), data, runtime=CPU)
        handle = trainer.model.register_forward_hook(lambda m, *_: None if m.training else passes.append(m))
        (records[method],) = trainer.fit().history
        handle.remove()
    assert len(passes) == 2, "one evaluation each"
    logits, target = outputs_of(trainer, trainer.loaders.validation or trainer.loaders.test)
    for suffix, factor in (("", 1.0), ("_at_alpha", 0.4)):
        loss = F.cross_entropy(factor * logits, target).item()
        error = multiclass_calibration_error(factor * logits, target, num_classes=3, n_bins=15).item()
        assert records["pgt"][f"{name}_loss{suffix}"] == pytest.approx(loss, rel=1e-5)
        assert records["pgt"][f"{name}_calibration_error{suffix}"] == pytest.approx(error, abs=1e-5)
    assert records["pgt"][f"{name}_loss"] != records["pgt"][f"{name}_loss_at_alpha"]
    evaluated = {key for key in records["plain"] if key.startswith(name)}
    assert evaluated == {f"{name}_{metric}" for metric in ("loss", "accuracy", "calibration_error")}


@pytest.mark.parametrize("parts", [1, 4])
def test_training_accuracy_is_that_of_the_outputs_that_were_trained_on(parts, recipe, images):
    settings = replace(recipe, epochs=2, micro_batches=parts, label_smoothing=0.1)
    trainer = Trainer(Run(settings, "pgt"), images, runtime=CPU)
    correct, criterion = [], trainer.criterion

    def noted(output, target):
        correct.append((output.argmax(1) == target).sum().item())
        return criterion(output, target)

    trainer.criterion = noted
    history = trainer.fit().history
    steps = parts * len(trainer.loaders.train)
    assert len(correct) == 2 * steps
    for epoch, record in enumerate(history):
        assert record["train_accuracy"] == sum(correct[epoch * steps : (epoch + 1) * steps]) / 48
    assert history[0]["train_accuracy"] != history[1]["train_accuracy"]


def test_dropout_of_a_process_is_not_that_of_another_in_the_next_epoch(recipe, images, monkeypatch):
    trainer, seeds = Trainer(Run(recipe), images, runtime=CPU), []
    monkeypatch.setattr("backpass.training.trainer.set_seed", seeds.append)
    for process in (0, 1):
        monkeypatch.setattr(type(trainer.accelerator), "process_index", process)
        for epoch in (0, 1):
            trainer._epoch(epoch)
    assert len(set(seeds)) == 4
