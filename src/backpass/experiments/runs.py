"""One run in its folder: trained, resumed from its checkpoint, or read."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from backpass.errors import InputError
from backpass.experiments.cells import from_plain, to_plain
from backpass.experiments.results import RunResult, environment, read_result, write_result
from backpass.models import count_macs, count_parameters
from backpass.training.checkpoint import atomic_write, remove_temporaries, save_weights
from backpass.training.comparison import check_run
from backpass.training.datasets import load_dataset
from backpass.training.images import ImageData
from backpass.training.lock import FolderLock, lock_folder
from backpass.training.methods import deploy
from backpass.training.outcome import EpochRecord, Outcome
from backpass.training.processes import is_main, join, on_main, process_count
from backpass.training.recipe import DataSettings, Run, Runtime
from backpass.training.trainer import Trainer

__all__ = ["Progress", "execute", "load_data"]

_SECONDS = ("train_seconds", "measure_seconds", "evaluate_seconds")


class Progress:
    """What a study reports while it runs; every hook does nothing unless overridden."""

    def start_study(self, runs: int) -> None:
        """``runs`` runs are about to start."""

    def start_run(self, run: Run) -> None:
        """One run starts."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Step ``step`` of ``steps`` of epoch ``epoch`` is done."""

    def end_epoch(self, record: EpochRecord) -> None:
        """One epoch has ended."""

    def end_run(self, result: RunResult) -> None:
        """One run has ended, now or in an earlier, interrupted study."""

    def fail_run(self, run: Run, error: str) -> None:
        """One run raised an error."""


def load_data(settings: DataSettings) -> ImageData:
    """Return the images that the settings describe."""
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
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> RunResult:
    """Return the result of one run: train it, resume it from its checkpoint, or read the result if it is complete.

    The folder holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line per epoch), ``checkpoint.pt``
    and the one before it, ``checkpoint.previous.pt``, ``model.safetensors`` (the trained plain weights) and, at the
    end, ``result.json``. Its ``.lock`` is held while the run is trained. Several processes, started by ``torchrun`` or
    ``accelerate launch``, train the run together and return the same result; the main one alone reads and writes the
    folder, and calls ``progress`` and ``check``.

    Args:
        run: recipe, method and seed.
        data: the images of the recipe.
        folder: the run folder; made if missing.
        runtime: how the run is computed.
        progress: receives steps, epochs and the end.
        check: called after every step and before checkpoint, weights and result are written; raises to abandon the run.
            Who passes it has claimed the run, so that a process that still holds the folder, such as a suspended one,
            loses it.

    Raises:
        InputError: the folder belongs to another run; nothing in it has changed then.
        StateError: another process trains in the folder.
    """
    join(runtime)
    progress = progress if progress is not None and is_main() else Progress()
    progress.start_run(run)
    with ExitStack() as stack:
        files = _RunFolder(folder, run, check if is_main() else None)
        result = on_main(lambda: files.read() or files.open(stack))
        if result is None:
            result = _train(run, data, files, runtime, progress)
    progress.end_run(result)
    return result


class _RunFolder:
    """The files of one run, in the hands of the main process."""

    def __init__(self, path: Path, run: Run, check: Callable[[], None] | None) -> None:
        self.path, self._run, self._check = path, run, check
        self._lock: FolderLock | None = None

    def read(self) -> RunResult | None:
        """Return the result if the run is complete."""
        path = self.path / "result.json"
        if not path.is_file():
            return None
        result = read_result(path)
        self._compare(result.run)
        return result

    def open(self, stack: ExitStack) -> RunResult | None:
        """Lock the folder until the stack is closed, and return the result if another process has written it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = stack.enter_context(lock_folder(self.path, take_over=self._check is not None))
        if result := self.read():
            return result
        config = self.path / "config.json"
        if config.is_file():
            try:
                self._compare(json.loads(config.read_text()))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise InputError(
                    f"expected {config} to hold the settings of a run, got {error}; remove it if the folder is that of "
                    "this run"
                ) from error
        remove_temporaries(self.path)
        return None

    def _compare(self, settings: object) -> None:
        stored = to_plain(from_plain(Run, settings))
        check_run(to_plain(self._run), stored, str(self.path), "choose another folder or remove this one")

    def check_step(self) -> None:
        """Raise if the run is no longer this process's to train."""
        if self._check is not None:
            self._check()

    def check_write(self) -> None:
        """Raise if the folder is no longer this process's to write in."""
        self.check_step()
        if self._lock is not None:
            self._lock.check()

    def write_json(self, name: str, content: object) -> None:
        """Write one file of settings."""
        atomic_write(self.path / name, json.dumps(content, indent=1).encode())

    def write_metrics(self, history: list[EpochRecord]) -> None:
        """Write the records of all epochs so far."""
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history).encode())


def _train(run: Run, data: ImageData, files: _RunFolder, runtime: Runtime, progress: Progress) -> RunResult:
    """Train the run until its end and write its files."""

    def end_step(epoch: int, step: int, steps: int) -> None:
        files.check_step()
        progress.step(epoch, step, steps)

    def end_epoch(record: EpochRecord) -> None:
        on_main(lambda: files.write_metrics(trainer.history))
        progress.end_epoch(record)

    trainer = Trainer(
        run,
        data,
        runtime=runtime,
        folder=files.path,
        on_step=end_step,
        on_epoch=end_epoch,
        on_save=files.check_write,
    )
    trainer.resume()
    described = environment() | {"runtime": asdict(runtime)}

    def write_settings() -> None:
        files.write_json("config.json", run.as_dict())
        files.write_json("environment.json", described)

    on_main(write_settings)  # After the checkpoint has been compared with the run.
    outcome = trainer.fit()

    def write_result_files() -> RunResult:
        deployed = deploy(run.method, trainer.model.eval())
        result = _result(run, data, trainer, deployed, outcome, described)
        files.check_write()
        files.write_metrics(trainer.history)  # A run that was killed after its last checkpoint has no epoch left.
        save_weights(files.path / "model.safetensors", deployed.state_dict())
        files.check_write()
        write_result(files.path / "result.json", result)
        return result

    return on_main(write_result_files)


def _result(
    run: Run, data: ImageData, trainer: Trainer, deployed: nn.Module, outcome: Outcome, described: dict[str, Any]
) -> RunResult:
    image = (data.channels, *data.image_size)
    held_out = data.test if data.validation is None else data.validation
    return RunResult(
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
        cost=_cost(outcome, gpus=process_count() if trainer.accelerator.device.type == "cuda" else 0),
        scalings={name: scaling.tolist() for name, scaling in outcome.scalings.items()},
        environment=described,
    )


def _cost(outcome: Outcome, gpus: int) -> dict[str, float | None]:
    seconds = {key: sum(record[key] for record in outcome.history) for key in _SECONDS}
    return {
        **seconds,
        "gpu_hours": gpus * sum(seconds.values()) / 3600 if gpus else None,
        "peak_memory": outcome.peak_memory,
    }
