"""The training loop, drawn once and run once.

One epoch::

    methods start the epoch                     SGS measures on batches of its own generator, when due
    for each batch of the epoch:                order and augmentation follow from (seed, epoch) alone
        for each of its micro-batches:
            output = model(input)               autocast
            loss = criterion(output, target)    PGT alters what this sends back
            backward(loss)                      loss scale, all-reduce of the last micro-batch
        unscale the gradients                   everything below sees true gradients
        [clip the norm]                         only with clip_before_scaling
        methods scale the gradients             SGS
        [clip the norm]                         so that the clipped norm is a bound
        methods clip the gradients              AGC
        optimizer.step()                        inside the methods' around_step: scores of DyRep, SGS on the update
        schedule.step()
    methods end the epoch                       DyRep grows and prunes
    evaluate, record, checkpoint

Hugging Face Accelerate is the engine: devices, mixed precision, distributed data parallel.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import Tensor, nn

from backpass.errors import InputError, StateError
from backpass.models import create_model
from backpass.training.checkpoint import load_checkpoint, save_checkpoint
from backpass.training.data import build_loaders, measuring_batches
from backpass.training.images import ImageData
from backpass.training.methods import Context, build_methods, convert
from backpass.training.optimization import build_optimizer, build_schedule
from backpass.training.recipe import SEEDS, Run, Runtime
from backpass.training.task import Classification, Criterion

__all__ = ["EpochRecord", "Outcome", "Trainer"]

_EVAL_BATCH_SIZE = 512

EpochRecord = dict[str, float]
OnStep = Callable[[int, int, int], None]
OnEpoch = Callable[[EpochRecord], None]
OnSave = Callable[[], None]


@dataclass
class Outcome:
    """What a finished run leaves.

    Attributes:
        history: one record per epoch: ``epoch``, ``lr``, ``train_loss``, ``test_loss``, the headline metric as
            ``test_accuracy``, and the seconds ``train_seconds``, ``measure_seconds``, ``evaluate_seconds``. Where
            validation images are held out, they are evaluated in the place of the test images, and ``validation_loss``
            and ``validation_accuracy`` stand here.
        scalings: the last scalings of SGS by parameter name; empty without SGS.
        peak_memory: bytes allocated at most on the accelerator; ``None`` on a CPU.
    """

    history: list[EpochRecord]
    scalings: dict[str, Tensor] = field(default_factory=dict)
    peak_memory: int | None = None


class Trainer:
    """Trains one model by one recipe with one method and one seed.

    Args:
        run: recipe, method and seed.
        data: the images, already loaded, so that many runs share them.
        runtime: device, precision, memory format, compilation.
        folder: where checkpoints go; ``None``: none are written.
        on_step: called with ``(epoch, step, steps per epoch)`` after each optimizer step.
        on_epoch: called with the record of each finished epoch.
        on_save: called before each checkpoint is written; raises to leave the old one as it is.

    Raises:
        InputError: the recipe names an unknown model or method, or does not fit the data.
    """

    def __init__(
        self,
        run: Run,
        data: ImageData,
        *,
        runtime: Runtime | None = None,
        folder: Path | None = None,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        on_save: OnSave | None = None,
    ) -> None:
        self.run = run
        self.runtime = runtime or Runtime()
        self.folder = folder
        self.on_step = on_step or (lambda *_: None)
        self.on_epoch = on_epoch or (lambda *_: None)
        self.on_save = on_save or (lambda: None)
        recipe = run.recipe
        self.accelerator = Accelerator(
            cpu=self.runtime.device == "cpu",
            mixed_precision=self.runtime.precision,
            step_scheduler_with_optimizer=False,
        )
        set_seed(run.seed)
        self.task = Classification(data.num_classes, recipe.label_smoothing)
        arguments: dict[str, Any] = dict(recipe.model_args)
        plain = create_model(recipe.model, num_classes=data.num_classes, in_channels=data.channels, **arguments)
        self.model = convert(run.method, recipe, plain).to(self.accelerator.device)
        if self.runtime.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(self.model, recipe.optimizer)
        loss_scaled = self.accelerator.scaler is not None
        context = Context(recipe, self.model, self.task, optimizer, run.seed, loss_scaled)
        self.methods = build_methods(run.method, context)
        self.criterion: Criterion = self.task.loss
        for method in self.methods.values():
            self.criterion = method.criterion(self.criterion)
        self.loaders = build_loaders(
            data,
            batch_size=recipe.batch_size,
            augmentation=recipe.stream_augmentation if data.streamed else recipe.augmentation,
            eval_batch_size=max(recipe.batch_size, _EVAL_BATCH_SIZE),
            device=self.accelerator.device,
            channels_last=self.runtime.channels_last,
            seed=run.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=self.runtime.workers,
        )
        steps = len(self.loaders.train)
        self.schedule = build_schedule(optimizer, recipe.schedule, recipe.optimizer.lr, recipe.epochs, steps)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        # The wrapper looks for optional packages on the disk at each step; where it only hands on, it is left out.
        handed_on = self.accelerator.scaler is None and self.accelerator.device.type != "xla"
        self._stepping = optimizer if handed_on else self.optimizer
        self.wrapped = self.model
        self._wrap()
        self.history: list[EpochRecord] = []

    # The loop

    def fit(self) -> Outcome:
        """Train until the recipe's last epoch, from the loaded checkpoint on if there is one."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)
        for epoch in range(len(self.history), self.run.recipe.epochs):
            record = self._epoch(epoch)
            self.history.append(record)
            self._checkpoint(epoch)
            self.on_epoch(record)
        return Outcome(self.history, self._scalings(), self._peak_memory())

    def _epoch(self, epoch: int) -> EpochRecord:
        # What chance decides inside the model (dropout) follows from seed and epoch too: a resumed run needs no state.
        set_seed((self.run.seed * 1_000_003 + epoch + self.accelerator.process_index) % SEEDS)
        lr = self.optimizer.param_groups[0]["lr"]
        clock = time.perf_counter()
        measured = [m.start_epoch(epoch, self._measuring_batches(epoch)) for m in self.methods.values()]
        measure_seconds = time.perf_counter() - clock if any(measured) else 0.0

        clock = time.perf_counter()
        self.wrapped.train()
        total, count, steps = torch.zeros((), device=self.accelerator.device), 0, len(self.loaders.train)
        for step, (images, target) in enumerate(self.loaders.train.iter_epoch(epoch)):
            total.add_(self._step(images, target), alpha=len(target))
            count += len(target)
            self.on_step(epoch, step + 1, steps)
        train_loss = total.item() / count
        train_seconds = time.perf_counter() - clock
        if not train_loss < float("inf"):
            raise StateError(
                f"the training loss became {train_loss} in epoch {epoch}; lower the learning rate "
                f"({self.run.recipe.optimizer.lr}), warm it up, or clip gradients (clip_norm, agc)"
            )

        clock = time.perf_counter()
        restructured = [m.end_epoch(epoch, self._measuring_batches(epoch)) for m in self.methods.values()]
        if any(restructured):
            self._wrap()
            measure_seconds += time.perf_counter() - clock

        clock = time.perf_counter()
        evaluation = self.evaluate()
        return {
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            **evaluation,
            "train_seconds": train_seconds,
            "measure_seconds": measure_seconds,
            "evaluate_seconds": time.perf_counter() - clock,
        }

    def _step(self, images: Tensor, target: Tensor) -> Tensor:
        """One optimizer step on one batch; returns the mean loss, on the device."""
        parts = self.run.recipe.micro_batches
        losses = []
        pieces = list(zip(images.tensor_split(parts), target.tensor_split(parts), strict=True))
        for number, (piece, piece_target) in enumerate(pieces):
            last = number == len(pieces) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss = self.criterion(self.wrapped(piece), piece_target)
                if parts > 1:
                    loss = loss * (len(piece_target) / len(target))
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        self.accelerator.unscale_gradients(self.optimizer)
        self._alter_gradients()
        with ExitStack() as stack:
            for method in self.methods.values():
                stack.enter_context(method.around_step())
            self._stepping.step()
        self._stepping.zero_grad()
        if not self.optimizer.step_was_skipped:
            self.schedule.step()
        return torch.stack(losses).sum() if parts > 1 else losses[0]

    def _alter_gradients(self) -> None:
        recipe = self.run.recipe
        if recipe.clip_norm is not None and recipe.clip_before_scaling:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        for method in self.methods.values():
            method.scale_gradients()
        if recipe.clip_norm is not None and not recipe.clip_before_scaling:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        for method in self.methods.values():
            method.clip_gradients()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return loss and headline metric on the validation images, or without any on the test images.

        Both are over all processes; their names begin with ``validation_`` or ``test_``.
        """
        held_out = self.loaders.validation
        split, loader = ("test", self.loaders.test) if held_out is None else ("validation", held_out)
        self._share_buffers()
        self.model.eval()
        metric = self.task.metric(self.accelerator.device)
        loss_sum, count = torch.zeros((), device=self.accelerator.device, dtype=torch.float64), 0
        for images, target in loader:
            output = self.model(images)
            metric.update(output, target)
            loss_sum += self.task.evaluation_loss(output, target) * len(target)
            count += len(target)
        total = self.accelerator.reduce(torch.stack([loss_sum, loss_sum.new_tensor(count)]), "sum")
        return {
            f"{split}_loss": (total[0] / total[1]).item(),
            f"{split}_{self.task.metric_name}": metric.compute().item(),
        }

    def _share_buffers(self) -> None:
        """Give every process the running statistics of the first, as distributed training does in its next forward."""
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                broadcast(buffer)

    def _measuring_batches(self, epoch: int) -> Callable[[int], Sequence[Tensor]]:
        return lambda count: measuring_batches(self.loaders.train, count, epoch=epoch)

    def _scalings(self) -> dict[str, Tensor]:
        states = [method.state_dict() for method in self.methods.values()]
        return {n: s.cpu() for state in states for n, s in state.get("scalings", {}).items()}

    def _peak_memory(self) -> int | None:
        device = self.accelerator.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    def _wrap(self) -> None:
        """Compile and distribute the model, anew after its parameters have become others."""
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if self.runtime.compile:
            self.model.compile()
        self.wrapped = self.accelerator.prepare_model(self.model)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on, bit for bit, after the epochs in the history."""
        scaler = self.accelerator.scaler
        return {
            "run": self.run.as_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InputError: the state belongs to another run.
        """
        if state["run"] != self.run.as_dict():
            raise InputError(
                f"the checkpoint belongs to another run: it was made by {state['run']}, this is {self.run.as_dict()}"
            )
        for name, method in self.methods.items():  # first, since DyRep rebuilds the structure that the others need
            method.load_state_dict(state["methods"][name])
        self._wrap()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.history = list(state["history"])

    def resume(self) -> bool:
        """Load the folder's checkpoint if there is one; return whether there was."""
        path = self._checkpoint_path()
        if path is None or not path.is_file():
            return False
        self.load_state_dict(load_checkpoint(path))
        return True

    def _checkpoint(self, epoch: int) -> None:
        path = self._checkpoint_path()
        last = epoch == self.run.recipe.epochs - 1
        due = (epoch + 1) % self.runtime.checkpoint_every == 0 or last
        if path is not None and due and self.accelerator.is_main_process:
            self.on_save()
            save_checkpoint(path, self.state_dict())

    def _checkpoint_path(self) -> Path | None:
        return None if self.folder is None else self.folder / "checkpoint.pt"
