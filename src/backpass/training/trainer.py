"""The training loop.

One epoch::

    methods start the epoch                     SGS measures on batches of its own generator, if due
    for each batch of the epoch:                order and augmentation follow from (seed, epoch) alone
        for each of its micro-batches:
            output = model(input)               under autocast
            loss = criterion(output, target)    PGT alters its gradient
            backward(loss)                      loss scale, all-reduce of the last micro-batch
        unscale the gradients                   everything below works on true gradients
        [clip the norm]                         only with clip_before_scaling
        methods scale the gradients             SGS
        [clip the norm]                         here the clipped norm is a bound
        methods clip the gradients              AGC
        optimizer.step()                        inside the methods' around_step: scores of DyRep, SGS on the update
        schedule.step()
    methods end the epoch                       DyRep grows and prunes
    evaluate, record, checkpoint                or each of these every few epochs, and at the end

Hugging Face Accelerate is the engine: devices, mixed precision, processes.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from backpass._internal.paths import AnyPath
from backpass.training.batches import batch_size, split_batch
from backpass.training.divergence import check_finite
from backpass.training.items import Data
from backpass.training.loaders import measuring_batches
from backpass.training.methods import deploy
from backpass.training.outcome import EpochRecord, Outcome
from backpass.training.processes import epoch_seed, gpu_use, on_main, reset_peak_memory, total
from backpass.training.recipe import Run, Runtime
from backpass.training.resumable_run import ResumableRun
from backpass.training.traces import scalings_of

__all__ = ["Trainer"]


class Trainer(ResumableRun):
    """Trains one model by one recipe with one method and one seed.

    Started by ``torchrun`` or ``accelerate launch``, several processes train it together, each on its part of every
    batch; the main process alone reads and writes checkpoints.

    Args:
        run: recipe, method and seed.
        data: what the recipe names, already loaded, so that many runs share it.
        runtime: device, precision, memory format, compilation.
        folder: folder of the checkpoints, made if missing; ``None``: none are written. With a checkpoint in it, the
            recipe's trained weights are read only if :meth:`fit` starts without :meth:`resume`.
        on_step: called with ``(epoch, step, steps per epoch)`` after each optimizer step.
        on_epoch: called with the record of each finished epoch.
        on_save: called in the main process before each checkpoint is written; if it raises, none is.

    Raises:
        InputError: the recipe names an unknown task, model or method or does not fit the data, or the runtime does not
            fit the device or the launcher.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        *,
        runtime: Runtime | None = None,
        folder: AnyPath | None = None,
        on_step: Callable[[int, int, int], None] | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        on_save: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(run, data, runtime or Runtime(), folder, on_save or (lambda: None))
        self.on_step = on_step or (lambda *_: None)
        self.on_epoch = on_epoch or (lambda *_: None)
        self._score = torch.zeros((), device=self.accelerator.device)

    def fit(self) -> Outcome:
        """Train until the recipe's last epoch, from the loaded checkpoint on if there is one.

        Raises:
            DivergedError: a loss or a metric of an epoch is not finite; the epoch has no checkpoint.
            StateError: an earlier call was interrupted within an epoch, and no checkpoint was loaded since.
            InputError: the folder holds the checkpoint of another run, which would be overwritten.
        """
        self.start()
        for epoch in range(len(self.history), self.run.recipe.epochs):
            self._in_epoch = True
            record = self._epoch(epoch)
            self._in_epoch = False
            self.history.append(record)
            if self._is_turn(epoch, self.runtime.checkpoint_every):
                on_main(self.save)
            self.on_epoch(record)
        return Outcome(self.history, scalings_of(self.methods.values()), self.traces.traces)

    def _epoch(self, epoch: int) -> EpochRecord:
        # What chance decides inside the model (dropout) follows from seed and epoch too: a resumed run needs no state.
        set_seed(epoch_seed(self.run.seed, epoch, self.accelerator.process_index))
        lr = self.optimizer.param_groups[0]["lr"]
        reset_peak_memory(self.accelerator.device)
        clock = time.perf_counter()
        measured = [m.start_epoch(epoch, self._measuring_batches(epoch)) for m in self.methods.values()]
        measure_seconds = time.perf_counter() - clock if any(measured) else 0.0
        self.traces.start_epoch(epoch, self.model, self.methods.values(), any(measured))

        clock = time.perf_counter()
        training = self._train(epoch)
        train_seconds = time.perf_counter() - clock

        clock = time.perf_counter()
        restructured = [m.end_epoch(epoch, self._measuring_batches(epoch)) for m in self.methods.values()]
        if any(restructured):
            self.wrapped.rewrap()
            measure_seconds += time.perf_counter() - clock

        clock = time.perf_counter()
        evaluation = self.evaluate() if self._is_turn(epoch, self.runtime.evaluate_every) else {}
        check_finite(evaluation, epoch, self.run.recipe.optimizer.lr)
        self.traces.end_epoch(epoch, self.model, total)
        return {
            "epoch": epoch,
            "lr": lr,
            **training,
            **evaluation,
            "train_seconds": train_seconds,
            "measure_seconds": measure_seconds,
            "evaluate_seconds": time.perf_counter() - clock,
            **gpu_use(self.accelerator.device),
        }

    def _train(self, epoch: int) -> dict[str, float]:
        """Train on all batches of an epoch; return the mean loss and the headline metric over all processes."""
        self.wrapped.train()
        loss_sum, count, steps = torch.zeros((), device=self.accelerator.device), 0, len(self.loaders.train)
        self._score.zero_()
        for step, (inputs, target) in enumerate(self.loaders.train.iter_epoch(epoch)):
            self.traces.start_step(step, steps)
            size = batch_size(target)
            loss_sum.add_(self._step(inputs, target), alpha=size)
            count += size
            self.on_step(epoch, step + 1, steps)
        self.wrapped.share_buffers()  # which methods and the checkpoint read before the next forward pass
        sums = total(torch.stack([loss_sum, self._score, loss_sum.new_tensor(count)]).double()).tolist()
        train_loss, score = sums[0] / sums[2], sums[1] / sums[2]
        name = self.task.training_metric
        metric = {} if name is None else {f"train_{name}": score}
        values = {"train_loss": train_loss, **metric, **self.traces.statistics(total)}
        check_finite(values, epoch, self.run.recipe.optimizer.lr)
        return values

    def _step(self, inputs: Any, target: Any) -> Tensor:
        """Take one optimizer step on one batch; return the mean loss, on the device, and add to the epoch's score."""
        parts = self.run.recipe.micro_batches
        losses = []
        terms = self.task.terms(target) if parts > 1 else 1
        pieces = split_batch((inputs, target), parts) if parts > 1 else [(inputs, target)]
        for number, (piece, piece_target) in enumerate(pieces):
            last = number == len(pieces) - 1
            with nullcontext() if last else self.wrapped.no_sync():
                output = self.wrapped(piece)
                self.traces.output(output)
                loss = self.criterion(output, piece_target)
                if parts > 1:
                    loss = loss * (self.task.terms(piece_target) / terms)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            if self.task.training_metric is not None:
                with torch.no_grad():
                    self._score += self.task.training_score(output, piece_target)
        self.accelerator.unscale_gradients(self.optimizer)
        self.traces.gradients(self.model)
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
        """Return the metrics on the validation images or, without any, on the test images, over all processes.

        Their names begin with ``validation_`` or ``test_``; :class:`~backpass.training.outcome.Outcome` lists them.
        """
        split, loader = self.loaders.evaluated
        self.wrapped.share_buffers()
        self.model.eval()
        alpha = next((m.alpha for m in self.methods.values() if m.alpha is not None), None)
        evaluation = self.task.evaluation(self.accelerator.device, alpha)
        for inputs, target in loader:
            evaluation.update(self.task.predict(self.wrapped.evaluate, inputs), target)
        self.traces.evaluated(evaluation)
        return {f"{split}_{name}": float(value) for name, value in evaluation.compute(total).items()}

    def deploy(self) -> nn.Module:
        """Return the plain network that equals the trained model in eval mode, and can be trained further.

        It has nothing that training alone needs. Processes do not wait for each other.
        """
        forward = self.wrapped.in_precision(self.task.measuring_forward(self.model))
        batches = self._measuring_batches(self.run.recipe.epochs)
        return self.task.deploy(deploy(self.run.method, self.model.eval(), batches, forward))

    def _measuring_batches(self, epoch: int) -> Callable[[int], Sequence[Any]]:
        return lambda count: measuring_batches(self.loaders.train, count, epoch=epoch)

    def _is_turn(self, epoch: int, every: int) -> bool:
        return (epoch + 1) % every == 0 or epoch == self.run.recipe.epochs - 1
