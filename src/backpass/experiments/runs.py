"""One run in its folder: trained, continued from its checkpoint, or read."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from backpass.errors import InputError
from backpass.experiments.cells import to_plain
from backpass.experiments.results import RunResult, environment, read_result, write_result
from backpass.models import count_macs, count_parameters
from backpass.training.checkpoint import atomic_write, save_weights
from backpass.training.datasets import load_dataset
from backpass.training.images import ImageData
from backpass.training.methods import deploy
from backpass.training.recipe import DataSettings, Run, Runtime
from backpass.training.trainer import EpochRecord, Outcome, Trainer

__all__ = ["Progress", "execute", "load_data"]

_SECONDS = ("train_seconds", "measure_seconds", "evaluate_seconds")


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

    def end_run(self, result: RunResult) -> None:
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
        image_size=settings.image_size,
    )


def execute(
    run: Run,
    data: ImageData,
    folder: Path,
    *,
    runtime: Runtime,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> RunResult:
    """Return the result of one run, trained now, continued from its checkpoint, or read if it is complete.

    The folder holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line per epoch), ``checkpoint.pt``,
    ``model.safetensors`` (the trained plain weights) and, at the end, ``result.json``.

    Args:
        run: recipe, method and seed.
        data: the images of the recipe.
        folder: the run folder; made if missing.
        runtime: how it is computed.
        progress: is told of steps, epochs and the end.
        check: called after every step and before checkpoint, weights and result are written; raises to abandon the run.

    Raises:
        InputError: the folder belongs to another run.
    """
    progress = progress or Progress()
    progress.start_run(run)
    finished = folder / "result.json"
    if finished.is_file():
        result = read_result(finished)
        if result.run != to_plain(run):
            raise InputError(f"{folder} holds the result of another run; choose another folder or remove it")
        progress.end_run(result)
        return result
    folder.mkdir(parents=True, exist_ok=True)
    surroundings = environment() | {"runtime": asdict(runtime)}
    _write_json(folder / "config.json", run.as_dict())
    _write_json(folder / "environment.json", surroundings)

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
    result = RunResult(
        run=to_plain(run),
        data={
            "label": data.label,
            "train": len(data.train),
            "evaluated": len(held_out),
            "split": "test" if data.validation is None else "validation",
        },
        model={
            "name": run.recipe.model,
            "parameters": count_parameters(trainer.model),
            "macs": count_macs(trainer.model, image),
            "deployed_parameters": count_parameters(deployed),
            "deployed_macs": count_macs(deployed, image),
        },
        history=outcome.history,
        cost=_cost(outcome, gpus=trainer.accelerator.num_processes if trainer.accelerator.device.type == "cuda" else 0),
        scalings={name: scaling.tolist() for name, scaling in outcome.scalings.items()},
        environment=surroundings,
    )
    check()
    write_metrics()  # A run that was killed after its last checkpoint had no more epoch to write them in.
    save_weights(folder / "model.safetensors", deployed.state_dict())
    check()
    write_result(finished, result)
    progress.end_run(result)
    return result


def _cost(outcome: Outcome, gpus: int) -> dict[str, float | None]:
    seconds = {key: sum(record[key] for record in outcome.history) for key in _SECONDS}
    return {
        **seconds,
        "gpu_hours": gpus * sum(seconds.values()) / 3600 if gpus else None,
        "peak_memory": outcome.peak_memory,
    }


def _write_json(path: Path, content: object) -> None:
    atomic_write(path, json.dumps(content, indent=1).encode())
