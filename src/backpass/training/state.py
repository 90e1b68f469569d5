"""What training changes: model, optimizer, schedule and methods; built from a run, saved and loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from backpass.errors import BackpassError, InputError
from backpass.models import create_model
from backpass.training.differences import check_form, check_run
from backpass.training.fit import check_fit
from backpass.training.items import Data
from backpass.training.method import Context, Method
from backpass.training.methods import build_methods, convert
from backpass.training.optimization import build_optimizer, build_schedule
from backpass.training.recipe import Run, Runtime
from backpass.training.sync_batch_norm import synchronise_batch_norm
from backpass.training.task import Criterion, Task
from backpass.training.weights import load_weights
from backpass.training.wrapping import WrappedModel

__all__ = ["TrainingState", "build_state", "check_checkpoint"]

_PARTS = {
    "run": dict,
    "precision": str,
    "items": dict,
    "model": dict,
    "optimizer": dict,
    "schedule": dict,
    "scaler": dict,
    "methods": dict,
    "history": list,
    "traces": dict,
}
# What a schedule's state holds in every version of torch; the rest of it follows from the recipe.
_POSITION = ("base_lrs", "last_epoch", "_step_count", "_last_lr")


@dataclass(frozen=True)
class TrainingState:
    """What training changes.

    Attributes:
        model: the model, without wrappers.
        wrapped: runs its forward pass.
        optimizer: its optimizer, behind the accelerator's loss scale.
        schedule: the learning rate.
        methods: the methods by name.
        criterion: the task's loss, as the methods alter it.
    """

    model: nn.Module
    wrapped: WrappedModel
    optimizer: AcceleratedOptimizer
    schedule: LRScheduler
    methods: dict[str, Method]
    criterion: Criterion

    @property
    def stepping(self) -> Optimizer | AcceleratedOptimizer:
        """The optimizer that takes the steps."""
        # The wrapper looks for optional packages on the disk at each step, and is needed for the loss scale alone.
        return self.optimizer.optimizer if self._scaler is None else self.optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": {} if self._scaler is None else self._scaler.state_dict(),
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load :meth:`state_dict` into a state that :func:`build_state` returned for the same run.

        Raises:
            InputError: a part is missing, or has other names, shapes or types than those of the run; the object is of
                no use then.
        """
        _check_keys(state["methods"], self.methods, "methods")
        for name, method in self.methods.items():  # First, since DyRep rebuilds the structure that the others need.
            with _naming(f"methods.{name}"):
                method.load_state_dict(state["methods"][name])
        self.wrapped.rewrap()
        check_form(dict(self.model.state_dict()), state["model"], "model")
        with _naming("model"):
            self.model.load_state_dict(state["model"])
        self._load_optimizer(state["optimizer"])
        own = self.schedule.state_dict()
        position = {name: value for name, value in state["schedule"].items() if name in _POSITION}
        check_form({name: own[name] for name in _POSITION}, position, "schedule")
        self.schedule.load_state_dict(own | position)
        if self._scaler is not None:  # The last, since it is that of the whole process, and not of this object alone.
            check_form(self._scaler.state_dict(), state["scaler"], "scaler")
            with _naming("scaler"):
                self._scaler.load_state_dict(state["scaler"])

    @property
    def _scaler(self) -> GradScaler | None:
        """The loss scale, in half precision alone."""
        scaler: GradScaler | None = self.optimizer.scaler
        return scaler

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        own = self.optimizer.state_dict()
        _check_keys(state, own, "optimizer")
        check_form(own["param_groups"], state["param_groups"], "optimizer.param_groups")
        with _naming("optimizer"):
            self.optimizer.load_state_dict(state)
        optimizer: Optimizer = self.optimizer.optimizer
        for name, parameter in self.model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise InputError(
                        f"expected optimizer.{key} of {name} in the checkpoint to have shape {tuple(parameter.shape)}, "
                        f"got {tuple(value.shape)}; "
                        "use the checkpoint of this run, or remove it"
                    )


def build_state(
    run: Run,
    data: Data,
    task: Task,
    runtime: Runtime,
    accelerator: Accelerator,
    steps_per_epoch: int,
    *,
    folder: Path | None = None,
    weights: bool = True,
) -> TrainingState:
    """Return the state of a run before its first epoch; it follows from recipe, method, seed and trained weights.

    Args:
        run: recipe, method and seed.
        data: what the model is trained on.
        task: what it is trained for.
        runtime: how it is computed.
        accelerator: the engine.
        steps_per_epoch: number of optimizer steps in an epoch.
        folder: of the run, next to which are the other runs of its study.
        weights: start from the recipe's trained weights; ``False`` for a state into which a checkpoint is loaded.

    Raises:
        InputError: the recipe names an unknown model or method, does not fit the data (:func:`check_fit`), or names
            weights that do not fit the model.
    """
    recipe = run.recipe
    set_seed(run.seed)
    arguments: dict[str, Any] = dict(recipe.model_args)
    try:
        plain = create_model(recipe.model, num_classes=data.num_classes, in_channels=data.channels, **arguments)
    except InputError as error:
        if not arguments:
            raise
        raise InputError(
            f"{error}; {', '.join(arguments)} came from model_args, which may be the recipe's for a model of its own: "
            "--model-args alone gives none"
        ) from error
    if weights:
        load_weights(plain, recipe.weights, folder)
    model = convert(run.method, recipe, plain)
    if recipe.sync_batch_norm and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise InputError(
                f"expected sync_batch_norm on accelerators, got {accelerator.num_processes} processes on CPUs, for "
                "which PyTorch has none; switch it off, or train in one process"
            )
        model = synchronise_batch_norm(model)
    model = model.to(accelerator.device)
    images = recipe.batch_size // accelerator.num_processes // recipe.micro_batches
    check_fit(recipe.model, model, task, data, images)
    if runtime.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimizer)
    wrapped = WrappedModel(model, accelerator, compile=runtime.compile)
    forward = wrapped.in_precision(task.measuring_forward(model))
    context = Context(recipe, model, task, optimizer, run.seed, forward)
    methods = build_methods(run.method, context)
    schedule = build_schedule(optimizer, recipe.schedule, recipe.optimizer.lr, recipe.epochs, steps_per_epoch)
    criterion: Criterion = task.loss
    for method in methods.values():
        criterion = method.criterion(criterion)
    return TrainingState(model, wrapped, accelerator.prepare_optimizer(optimizer), schedule, methods, criterion)


def check_checkpoint(state: Any, run: Run, runtime: Runtime, items: dict[str, int]) -> None:
    """Raise InputError if ``state`` is not a checkpoint of ``run``, as far as that shows without its model.

    It has to be of the same precision and numbers of items, since a record states one, and the schedule follows from
    them; the rest of the runtime may change.
    """
    if isinstance(state, dict):
        state = {"items": items, **state}  # the first checkpoints had none
    _check_keys(state, _PARTS, "the content")
    for name, kind in _PARTS.items():
        if not isinstance(state[name], kind):
            raise InputError(
                f"expected {name} of the checkpoint to be a {kind.__name__}, got {type(state[name]).__name__}; "
                "use the checkpoint of this run, or remove it"
            )
    advice = "choose another folder or remove the checkpoint"
    check_run(run.as_dict(), state["run"], "the checkpoint", advice)
    check_run({"items": items}, {"items": state["items"]}, "the checkpoint", f"restore the data, or {advice}")
    if state["precision"] != runtime.precision:
        raise InputError(
            f"expected runtime.precision={state['precision']}, in which the checkpoint was trained, got "
            f"{runtime.precision}; resume in that precision, or choose another folder or remove the checkpoint"
        )
    history = state["history"]
    records = all(isinstance(record, dict) and record.get("epoch") == epoch for epoch, record in enumerate(history))
    if not records or len(history) > run.recipe.epochs:
        raise InputError(
            f"expected history of the checkpoint to hold a record for each epoch, at most {run.recipe.epochs}, got "
            f"{history!r}; "
            "use the checkpoint of this run, or remove it"
        )


def _check_keys(state: Any, expected: dict[str, Any], name: str) -> None:
    if not isinstance(state, dict) or state.keys() != expected.keys():
        found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise InputError(
            f"expected {name} of the checkpoint to have the keys {sorted(expected)}, got {found}; remove the checkpoint"
        )


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """Turn what a part of a checkpoint raises when it is loaded into an InputError that names the part."""
    try:
        yield
    except Exception as error:
        text = str(error) if isinstance(error, BackpassError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"expected {part} of the checkpoint to be that of this run, got another: {text}; "
            "use the checkpoint of this run, or remove it"
        ) from error
