"""One run in its folder: trained, continued from its checkpoint, or read."""

import json
from collections.abc import Callable
from pathlib import Path

from backpass.errors import InputError
from backpass.experiments.environment import environment
from backpass.experiments.record import RECORD_FILE, Cost, EvaluatedData, Record, TrainedModel, read_record
from backpass.experiments.serialization import to_json
from backpass.models import count_macs, count_parameters
from backpass.training.checkpoint import atomic_write, save_weights
from backpass.training.datasets import load_dataset
from backpass.training.images import ImageData
from backpass.training.methods import deploy
from backpass.training.outcome import EpochRecord, Outcome
from backpass.training.recipe import DataSettings, Run, Runtime
from backpass.training.trainer import Trainer

__all__ = ["Progress", "execute", "load_data"]


class Progress:
    """What a study tells its audience; every hook does nothing unless overridden."""

    def start_study(self, runs: int) -> None:
        """``runs`` runs are about to start."""

    def start_run(self, run: Run) -> None:
        """One run starts."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Step ``step`` of ``steps`` of epoch ``epoch`` is done."""

    def end_epoch(self, record: EpochRecord) -> None:
        """One epoch is over."""

    def end_run(self, result: Record) -> None:
        """One run is over, now or in an earlier, interrupted study."""

    def fail_run(self, run: Run, error: str) -> None:
        """One run raised an error."""


def load_data(settings: DataSettings) -> ImageData:
    """Return the images that the settings ask for."""
    return load_dataset(
        settings.name,
        root=settings.root,
        download=settings.download,
        split_validation=settings.validation,
        limit_train=settings.limit_train,
        limit_test=settings.limit_test,
        label=settings.label,
    )


def execute(
    run: Run,
    data: ImageData,
    folder: Path,
    *,
    runtime: Runtime,
    entry: str = "",
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> Record:
    """Return the result of one run, trained now, continued from its checkpoint, or read if it is complete.

    The folder holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line per epoch), ``checkpoint.pt``,
    ``model.safetensors`` (the trained plain weights) and, at the end, ``result.json``.

    Args:
        run: recipe, method and seed.
        data: the images of the recipe.
        folder: the run folder; made if missing.
        runtime: how it is computed.
        entry: key of the entry that the run belongs to.
        progress: is told of steps, epochs and the end.
        check: called after every step and before checkpoint, weights and result are written; raises to abandon the run.

    Raises:
        InputError: the folder belongs to another run.
    """
    progress = progress or Progress()
    progress.start_run(run)
    finished = folder / RECORD_FILE
    if finished.is_file():
        result = read_record(finished)
        if result.run != run:
            raise InputError(f"{folder} holds the result of another run; choose another folder or remove it")
        progress.end_run(result)
        return result
    folder.mkdir(parents=True, exist_ok=True)
    found = environment(runtime)
    atomic_write(folder / "config.json", to_json(run).encode())
    atomic_write(folder / "environment.json", to_json(found).encode())

    def end_step(epoch: int, step: int, steps: int) -> None:
        check()
        progress.step(epoch, step, steps)

    def write_metrics() -> None:
        lines = "".join(json.dumps(record) + "\n" for record in trainer.history)
        atomic_write(folder / "metrics.jsonl", lines.encode())

    def end_epoch(record: EpochRecord) -> None:
        write_metrics()
        progress.end_epoch(record)

    trainer = Trainer(run, data, runtime=runtime, folder=folder, on_step=end_step, on_epoch=end_epoch, on_save=check)
    trainer.resume()
    outcome = trainer.fit()
    deployed, image = deploy(run.method, trainer.model.eval()), (data.channels, *data.image_size)
    held_out = data.test if data.validation is None else data.validation
    record = Record(
        run=run,
        entry=entry,
        data=EvaluatedData(
            label=data.label,
            train=len(data.train),
            evaluated=len(held_out),
            split="test" if data.validation is None else "validation",
        ),
        model=TrainedModel(
            name=run.recipe.model,
            parameters=count_parameters(trainer.model),
            macs=count_macs(trainer.model, image),
            deployed_parameters=count_parameters(deployed),
            deployed_macs=count_macs(deployed, image),
        ),
        history=outcome.history,
        cost=_cost(outcome, gpus=trainer.accelerator.num_processes if trainer.accelerator.device.type == "cuda" else 0),
        scalings={name: scaling.tolist() for name, scaling in outcome.scalings.items()},
        environment=found,
    )
    check()
    write_metrics()  # A run that was killed after its last checkpoint had no more epoch to write them in.
    save_weights(folder / "model.safetensors", deployed.state_dict())
    check()
    record.write(finished)
    progress.end_run(record)
    return record


def _cost(outcome: Outcome, gpus: int) -> Cost:
    train, measure, evaluate = (
        sum(record[f"{phase}_seconds"] for record in outcome.history) for phase in ("train", "measure", "evaluate")
    )
    hours = gpus * (train + measure + evaluate) / 3600 if gpus else None
    return Cost(train, measure, evaluate, hours, outcome.peak_memory)
