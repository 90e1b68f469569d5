"""One run in its folder: trained, resumed from its checkpoint, or read."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from backpass.errors import StateError
from backpass.experiments.environment import Environment, environment
from backpass.experiments.progress import Progress
from backpass.experiments.record import Cost, EvaluatedData, Record, TrainedModel
from backpass.experiments.run_folder import RunFolder
from backpass.experiments.trackers import tracking
from backpass.models import count_macs, count_parameters
from backpass.training.checkpoint import save_weights
from backpass.training.datasets import load_dataset
from backpass.training.items import Data
from backpass.training.outcome import EpochRecord, Outcome
from backpass.training.processes import is_main, join, on_main
from backpass.training.recipe import DataSettings, Recipe, Run, Runtime
from backpass.training.trainer import Trainer

__all__ = ["execute", "load_data"]


def load_data(settings: DataSettings) -> Data:
    """Return the images, or other items, that the settings describe."""
    return load_dataset(
        settings.name,
        root=settings.root,
        download=settings.download,
        split_validation=settings.validation,
        limit_train=settings.limit_train,
        limit_test=settings.limit_test,
        label=settings.label,
        image_size=settings.image_size,
        arguments=dict(settings.args),
    )


def execute(
    run: Run,
    data: Data,
    folder: Path,
    *,
    runtime: Runtime,
    entry: str = "",
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Record:
    """Return the record of one run: train it, resume it from its checkpoint, or read the record if it is complete.

    The folder holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line for each epoch),
    ``checkpoint.pt`` and the one before it, ``checkpoint.previous.pt``, ``model.safetensors`` (the trained plain
    weights) and, at the end, ``result.json``. Its ``.lock`` is held while the run is trained. Several processes,
    started by ``torchrun`` or ``accelerate launch``, train the run together and return the same record; the main one
    alone reads and writes the folder, and calls ``progress`` and ``check``.

    Args:
        run: recipe, method and seed.
        data: what the recipe names, loaded.
        folder: the run folder; made if missing.
        runtime: how the run is computed.
        entry: key of the entry of a study that the run belongs to; a record without it, of a run that was trained
            before the study had it, takes it.
        progress: receives steps, epochs and the end.
        check: called after every step and before checkpoint, weights and record are written; raises to abandon the run.
            Who passes it has claimed the run, so that a process that still holds the folder, such as a suspended one,
            loses it.

    Raises:
        InputError: the folder belongs to another run; nothing in it has changed then.
        StateError: another process trains in the folder, or the run does not fit into memory.
    """
    join(runtime)
    progress = progress if progress is not None and is_main() else Progress()
    progress.start_run(run)
    with ExitStack() as stack:
        files = RunFolder(folder, run, check if is_main() else None)
        record = on_main(lambda: files.read(entry) or files.open(stack, entry))
        if record is None:
            with _naming_lack_of_memory(run.recipe):
                record = _train(run, data, files, runtime, entry, progress)
    progress.end_run(record)
    return record


@contextmanager
def _naming_lack_of_memory(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator has no exception of its own.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        cause = next(iter(str(error).splitlines()), "none left")
        raise StateError(
            f"expected the run to fit into memory, got {cause}; lower batch_size ({recipe.batch_size}) or raise "
            f"micro_batches ({recipe.micro_batches})"
        ) from error


def _train(run: Run, data: Data, files: RunFolder, runtime: Runtime, entry: str, progress: Progress) -> Record:
    """Train the run until its end and write its files."""

    def end_step(epoch: int, step: int, steps: int) -> None:
        files.check_step()
        progress.step(epoch, step, steps)

    trainer = Trainer(run, data, runtime=runtime, folder=files.path, on_step=end_step, on_save=files.check_write)
    trainer.resume()
    history, traces = trainer.history, trainer.traces

    def end_epoch(record: EpochRecord) -> None:
        on_main(lambda: files.write_metrics(history))
        track(record, traces.traces)
        progress.end_epoch(record)

    # It refers to parts of the trainer alone: in a cycle with it, each run of a process would stay in memory.
    trainer.on_epoch = end_epoch
    # Counted for the record at the end; what cannot be counted has to fail before it is trained.
    count_macs(trainer.model, example=trainer.task.example(data))
    here = environment(runtime, trainer.accelerator.device)
    # After the checkpoint has been compared with the run.
    where = on_main(lambda: files.write_settings(here, resumed=bool(trainer.history)))
    tracker = runtime.tracker if is_main() else None
    with tracking(tracker, run, files.path, epochs=len(trainer.history)) as track:
        outcome = trainer.fit()

    def write_end() -> Record:
        deployed = trainer.deploy()
        record = _record(run, entry, data, trainer, deployed, outcome, where)
        files.check_write()
        files.write_metrics(trainer.history)  # A run that was killed after its last checkpoint has no epoch left.
        save_weights(files.path / "model.safetensors", deployed.state_dict())
        files.check_write()
        files.write_record(record)
        return record

    return on_main(write_end)


def _record(
    run: Run, entry: str, data: Data, trainer: Trainer, deployed: nn.Module, outcome: Outcome, where: Environment
) -> Record:
    example = trainer.task.example(data)
    return Record(
        run=run,
        entry=entry,
        data=EvaluatedData(
            label=data.label,
            train=trainer.loaders.train.plan.count,
            evaluated=trainer.loaders.evaluated[1].plan.count,
            split="test" if data.validation is None else "validation",
        ),
        model=TrainedModel(
            name=run.recipe.model,
            parameters=count_parameters(trainer.model),
            macs=count_macs(trainer.model, example=example),
            deployed_parameters=count_parameters(deployed),
            deployed_macs=count_macs(deployed, example=example),
        ),
        history=outcome.history,
        metric=trainer.task.metric,
        cost=_cost(outcome),
        scalings={name: scaling.tolist() for name, scaling in outcome.scalings.items()},
        environment=where,
        traces=outcome.traces,
    )


def _cost(outcome: Outcome) -> Cost:
    train, measure, evaluate = (
        sum(record[f"{phase}_seconds"] for record in outcome.history) for phase in ("train", "measure", "evaluate")
    )
    return Cost(train, measure, evaluate, outcome.gpu_hours, outcome.peak_memory)
