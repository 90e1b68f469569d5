"""Running recipes: one run in its folder, and the comparison of methods over seeds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from backpass.errors import InputError
from backpass.experiments.results import RunResult, environment, read_result, write_result
from backpass.models import count_macs, count_parameters
from backpass.training.checkpoint import atomic_write, save_weights
from backpass.training.datasets import load_dataset
from backpass.training.images import ImageData
from backpass.training.methods import check_method
from backpass.training.recipe import DataSettings, Recipe, Run, Runtime
from backpass.training.trainer import EpochRecord, Trainer

__all__ = ["Progress", "compare", "execute", "load_data"]


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


def load_data(settings: DataSettings) -> ImageData:
    """Return the images that the settings ask for."""
    return load_dataset(
        settings.name,
        root=settings.root,
        download=settings.download,
        limit_train=settings.limit_train,
        limit_test=settings.limit_test,
        label=settings.label,
    )


def execute(
    run: Run, data: ImageData, folder: Path, *, runtime: Runtime, progress: Progress | None = None
) -> RunResult:
    """Return the result of one run, trained now, continued from its checkpoint, or read if it is complete.

    The folder holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line per epoch), ``checkpoint.pt``,
    ``model.safetensors`` (the trained plain weights) and, at the end, ``result.json``.

    Raises:
        InputError: the folder belongs to another run.
    """
    progress = progress or Progress()
    progress.start_run(run)
    finished = folder / "result.json"
    if finished.is_file():
        result = read_result(finished)
        if result.run != json.loads(json.dumps(run.as_dict())):
            raise InputError(f"{folder} holds the result of another run; choose another folder or remove it")
        progress.end_run(result)
        return result
    folder.mkdir(parents=True, exist_ok=True)
    surroundings = environment() | {"runtime": asdict(runtime)}
    _write_json(folder / "config.json", run.as_dict())
    _write_json(folder / "environment.json", surroundings)

    def end_epoch(record: EpochRecord) -> None:
        lines = "".join(json.dumps(r) + "\n" for r in trainer.history)
        atomic_write(folder / "metrics.jsonl", lines.encode())
        progress.end_epoch(record)

    trainer = Trainer(run, data, runtime=runtime, folder=folder, on_step=progress.step, on_epoch=end_epoch)
    trainer.resume()
    outcome = trainer.fit()
    shape = (data.channels, *data.image_size)
    result = RunResult(
        run=json.loads(json.dumps(run.as_dict())),
        data={"label": data.label, "train": len(data.train), "test": len(data.test)},
        model={
            "name": run.recipe.model,
            "parameters": count_parameters(trainer.model),
            "macs": count_macs(trainer.model, shape),
        },
        history=outcome.history,
        cost={
            **{
                key: sum(r[key] for r in outcome.history)
                for key in ("train_seconds", "measure_seconds", "evaluate_seconds")
            },
            "peak_memory": outcome.peak_memory,
        },
        scalings={name: scaling.tolist() for name, scaling in outcome.scalings.items()},
        environment=surroundings,
    )
    save_weights(folder / "model.safetensors", trainer.model.state_dict())
    write_result(finished, result)
    progress.end_run(result)
    return result


def compare(
    recipe: Recipe,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    runtime: Runtime,
    progress: Progress | None = None,
    load: Callable[[DataSettings], ImageData] = load_data,
) -> list[RunResult]:
    """Return the results of every method with every seed, methods in turn within a seed so that drift is shared.

    An interrupted comparison goes on where it was when it is started again on the same folder.

    Raises:
        InputError: no method or seed, or an unknown method.
    """
    if not methods or not seeds:
        raise InputError(f"expected at least one method and one seed, got {list(methods)} and {list(seeds)}")
    for method in methods:
        check_method(method)
    progress = progress or Progress()
    data = load(recipe.data)
    runs = [Run(recipe, method, seed) for seed in seeds for method in methods]
    progress.start_study(len(runs))
    return [
        execute(run, data, folder / f"{run.method}-seed{run.seed}", runtime=runtime, progress=progress) for run in runs
    ]


def _write_json(path: Path, content: object) -> None:
    atomic_write(path, json.dumps(content, indent=1).encode())
