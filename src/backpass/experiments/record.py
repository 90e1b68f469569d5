"""The record of a finished run: the content of its ``result.json``."""

import gzip
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from backpass._internal.paths import AnyPath
from backpass.errors import InputError
from backpass.experiments.environment import Environment
from backpass.experiments.files import files_below
from backpass.experiments.serialization import from_json, to_json
from backpass.training.checkpoint import atomic_write
from backpass.training.recipe import Run
from backpass.training.traces import Traces

__all__ = [
    "RECORD_FILE",
    "SCHEMA",
    "Cost",
    "EvaluatedData",
    "Record",
    "TrainedModel",
    "read_record",
    "read_records",
    "records_at",
]

SCHEMA = 3
RECORD_FILE = "result.json"
_SHOWN = 200
_EVERY_EPOCH = ("epoch", "train_seconds", "measure_seconds", "evaluate_seconds")


@dataclass(frozen=True)
class EvaluatedData:
    """The images of a run.

    Attributes:
        label: name in tables.
        train: number of training images.
        evaluated: number of images that were evaluated.
        split: that was evaluated.
    """

    label: str
    train: int
    evaluated: int
    split: Literal["test", "validation"]


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run.

    Attributes:
        name: in the registry.
        parameters: of the form that is trained, at the end.
        macs: its multiply-adds of one image.
        deployed_parameters: of the plain network that is left.
        deployed_macs: its multiply-adds.
    """

    name: str
    parameters: int
    macs: int
    deployed_parameters: int
    deployed_macs: int


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        train_seconds: of all epochs.
        measure_seconds: of all refreshes of SGS and adjustments of DyRep.
        evaluate_seconds: of all evaluations.
        gpu_hours: all of these on all GPUs; ``None`` where an epoch ran on a CPU.
        peak_memory: bytes allocated at most on the GPU; ``None`` likewise.
    """

    train_seconds: float
    measure_seconds: float
    evaluate_seconds: float
    gpu_hours: float | None
    peak_memory: int | None


@dataclass(frozen=True)
class Record:
    """What a finished run leaves.

    Attributes:
        run: recipe, method and seed.
        entry: key of the entry of its study; empty for a run of its own.
        data: the images.
        model: the model.
        history: one record for each epoch (:class:`backpass.training.trainer.Outcome`): the raw values.
        cost: of the run.
        scalings: the last SGS scalings by parameter name, as nested lists.
        environment: versions and hardware.
        traces: what figures need beyond the history; empty where the run recorded none.
        metric: name of the headline metric, that of the task; a larger one is better.
        schema: version of this schema.
    """

    run: Run
    entry: str
    data: EvaluatedData
    model: TrainedModel
    history: list[dict[str, float]]
    cost: Cost
    scalings: dict[str, list[Any]]
    environment: Environment
    traces: Traces = field(default_factory=Traces)
    metric: str = "accuracy"
    schema: int = SCHEMA

    @property
    def method(self) -> str:
        """The method's name."""
        return self.run.method

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.seed

    @property
    def subject(self) -> str:
        """Model and data set."""
        return f"{self.model.name} on {self.data.label}"

    def by_epoch(self, name: str) -> list[float]:
        """Return a metric after each epoch with an evaluation, such as ``"accuracy"`` of the evaluated split."""
        key = f"{self.data.split}_{name}"
        return [record[key] for record in self.history if key in record]

    @property
    def score(self) -> float:
        """The headline metric after the last epoch, as a fraction."""
        return self.by_epoch(self.metric)[-1]

    @property
    def seconds(self) -> float:
        """Seconds of training and measuring, without evaluation."""
        return self.cost.train_seconds + self.cost.measure_seconds

    @property
    def training_gpu_hours(self) -> float | None:
        """GPU hours of training and measuring, without evaluation; ``None`` on a CPU."""
        total, hours = self.seconds + self.cost.evaluate_seconds, self.cost.gpu_hours
        return hours * self.seconds / total if hours and total else hours

    @property
    def hardware(self) -> str:
        """Names of the CPU and the GPU, of all machines that computed the run."""
        return self.environment.hardware

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        atomic_write(path, to_json(self).encode())


def read_record(path: AnyPath) -> Record:
    """Return the record at ``path``.

    Raises:
        InputError: not a record of this schema, or without the values of every epoch or the metric after the last.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"expected a readable record at {path}, got {error}; check the folder") from error
    return _record(text, str(path))


def _record(text: str | bytes, source: str) -> Record:
    """Return the record that a text holds; ``source`` is what the text is, for errors."""
    record = from_json(Record, text, source)
    if record.schema != SCHEMA:
        raise InputError(
            f"{source}: expected a record of schema {SCHEMA}, got schema {record.schema}; read it with the version of "
            "backpass that wrote it"
        )
    if not record.history:
        raise InputError(f"{source}: expected a history with a record for each epoch, got none; run it again")
    score = f"{record.data.split}_{record.metric}"
    for epoch, values in enumerate(record.history):
        evaluated = score in values or epoch == len(record.history) - 1
        for key in (*_EVERY_EPOCH, score) if evaluated else _EVERY_EPOCH:
            if not math.isfinite(values.get(key, math.nan)):
                raise InputError(
                    f"{source}: expected {key} of epoch {epoch} to be a finite number, got {values.get(key)!r}; "
                    "run it again"
                )
    _check_tensors(record, source)
    return record


def _check_tensors(record: Record, source: str) -> None:
    """Raise InputError if nested lists of a record are no tensors of finite numbers."""
    traces = record.traces
    groups: dict[str, Mapping[str, list[Any]]] = {"scalings": record.scalings}
    groups |= {f"traces.scalings.{epoch}": by_layer for epoch, by_layer in traces.scalings.items()}
    groups |= {f"traces.kernels.{epoch}": by_layer for epoch, by_layer in traces.kernels.items()}
    groups |= {"traces.norm_weights": traces.norm_weights, "traces.reliability": traces.reliability}
    for group, tensors in groups.items():
        for name, values in tensors.items():
            try:
                tensor = torch.tensor(values, dtype=torch.float64)
            except (TypeError, ValueError):
                tensor = torch.empty(0)
            if tensor.numel() == 0 or not bool(tensor.isfinite().all()):
                raise InputError(
                    f"{source}: expected {group} of {name!r} to be nested lists of finite numbers, all of one length "
                    f"at each depth, got {str(values)[:_SHOWN]}; run it again"
                )


def read_records(folder: AnyPath) -> list[Record]:
    """Return all records below ``folder``, ordered by path (:func:`backpass.experiments.files.files_below`).

    Raises:
        InputError: there are none, or one cannot be read.
    """
    records = [read_record(path) for path in files_below(Path(folder)) if path.name == RECORD_FILE]
    if not records:
        raise InputError(f"expected run folders with a {RECORD_FILE} below {folder}, found none; check the folder")
    return records


def records_at(path: AnyPath) -> list[Record]:
    """Return the records of a file, or all records below a folder (:func:`read_records`).

    A file is a ``result.json``, or holds a record in each line: ``.jsonl``, or ``.jsonl.gz`` as in ``claims/results``.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    path = Path(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _records_in_lines(path)
    return [read_record(path)] if path.is_file() else read_records(path)


def _records_in_lines(path: Path) -> list[Record]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"expected readable records at {path}, got {error}; check the file") from error
    records = [_record(line, f"{path}, line {number}") for number, line in enumerate(content.splitlines(), 1)]
    if not records:
        raise InputError(f"expected a record in each line of {path}, got an empty file; check the file")
    return records
