"""Trackers of a run, through Accelerate's: TensorBoard, Weights & Biases, MLflow."""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import sqlalchemy
import torch

from backpass.errors import MissingExtraError
from backpass.experiments.settings import settings_by_name
from backpass.training.outcome import EpochRecord
from backpass.training.recipe import Run
from backpass.training.traces import Traces

__all__ = ["TrackEpoch", "tracking"]

TrackEpoch = Callable[[EpochRecord, Traces], None]
"""Sends the numbers of an epoch to a tracker, and its scalings as an image if they were measured in it."""

_PROJECT = "backpass"


@contextmanager
def tracking(name: str | None, run: Run, folder: Path, *, epochs: int = 0) -> Iterator[TrackEpoch]:
    """Yield a function that sends each epoch of a run to a tracker, which is closed at the end.

    The tracker writes below the run folder: TensorBoard into ``tensorboard/``, Weights & Biases its local files into
    ``wandb/``, and MLflow into ``mlflow.db`` and ``mlartifacts/``, unless ``MLFLOW_TRACKING_URI`` names a server.

    Args:
        name: ``tensorboard``, ``wandb`` or ``mlflow``; ``None``: nothing is sent.
        run: recipe, method and seed, which the tracker stores.
        folder: the run folder; its name is that of the run.
        epochs: number of epochs that the run had when it was resumed. TensorBoard forgets later ones, of a run that
            was killed after its last checkpoint; the others show a resumed run as a second one of the same name.

    Raises:
        MissingExtraError: the tracker is not installed.
    """
    if name is None:
        yield lambda record, traces: None
        return
    tracker = _build(name, folder, epochs)
    if hasattr(tracker, "start"):  # Older versions of Accelerate start in the constructor.
        tracker.start()
    try:
        if epochs == 0 or name != "tensorboard":
            tracker.store_init_configuration(_configuration(run))

        def send(record: EpochRecord, traces: Traces) -> None:
            epoch = int(record["epoch"])
            tracker.log({key: value for key, value in record.items() if key != "epoch"}, step=epoch)
            if epoch in traces.scalings:
                _send_scalings(name, tracker, epoch, traces.scalings[epoch])

        yield send
    finally:
        tracker.finish()


def _build(name: str, folder: Path, epochs: int) -> Any:
    if find_spec(name) is None:
        raise MissingExtraError(
            f"expected {name} to be installed for runtime.tracker={name}, got none; install it with: pip install {name}"
        )
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return kind(name, logging_dir=str(folder), purge_step=epochs)
    if name == "wandb":
        return kind(_PROJECT, dir=str(folder), name=folder.name)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        url = sqlalchemy.URL.create("sqlite", database=str(folder.resolve() / "mlflow.db"))
        import_module("mlflow").set_tracking_uri(url.render_as_string())
    return kind(experiment_name=_PROJECT, logging_dir=str(folder.resolve() / "mlartifacts"), run_name=folder.name)


def _send_scalings(name: str, tracker: Any, epoch: int, scalings: Mapping[str, list[Any]]) -> None:
    from PIL import Image

    # Here, since matplotlib takes seconds to load, which runs without a tracker need not wait for.
    from backpass.experiments.reporting.drawing.layers import draw_layers

    values = {layer: torch.tensor(scaling) for layer, scaling in scalings.items()}
    figure = draw_layers(values, f"at epoch {epoch}")
    if name == "mlflow":
        tracker.log_figure(figure, f"scalings-{epoch:04}.png")
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pixels = numpy.asarray(Image.open(buffer).convert("RGB"))
    if name == "tensorboard":
        tracker.log_images({"scalings": pixels[None]}, step=epoch, dataformats="NHWC")
    else:
        tracker.log_images({"scalings": [pixels]}, step=epoch)


def _configuration(run: Run) -> dict[str, Any]:
    """Return the settings of a run by name, as texts where they are no numbers; none that is left out."""
    settings = settings_by_name(run.as_dict())
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in settings.items()
        if value is not None
    }
