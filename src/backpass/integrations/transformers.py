"""SGS as a callback of the Hugging Face ``Trainer``, and PGT as its ``compute_loss_func``."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from backpass.errors import InputError, missing_extra
from backpass.pgt import power_grad_cross_entropy
from backpass.sgs import SpatialGradientScaling

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise missing_extra("transformers", "transformers", "the callbacks for the Hugging Face Trainer") from error

__all__ = ["PowerGradLoss", "SpatialGradientScalingCallback"]

_IGNORED = -100


class SpatialGradientScalingState(TrainerCallback):
    """Has the name under which the scalings are saved, and no argument, so that the ``Trainer`` can restore it.

    With ``restore_callback_states_from_checkpoint`` it makes the callbacks of all saved states again, from arguments
    that are saved as JSON, which a callback that holds the trainer has not; and it warns of a state without a callback.
    """


class SpatialGradientScalingCallback(TrainerCallback):
    """Train with SGS: ``trainer.add_callback(SpatialGradientScalingCallback(trainer, k=5.0))``.

    Measures before the first step of the epochs where it is due, on the first batches of the training loader. The
    ``Trainer`` has no event between backward and clipping, so this scales at the end of ``trainer.training_step``
    where gradients are synchronised: once per optimizer step, on accumulated gradients, before the ``Trainer``
    clips them (``max_grad_norm`` is 1 by default). Its default optimizer is AdamW, under which a scaling of the
    gradient cancels: pass ``apply="update"``, or choose ``optim="sgd"``. The scalings are part of
    ``trainer_state.json``. Where a trainer has several callbacks, such as one for each stage of the model, add them
    in the same order to resume.

    Args:
        trainer: the trainer that it is added to.
        batches: the number of batches to measure on.
        forward: the name of the input in the batches, or a function that runs the model on a batch.
        options: of :class:`backpass.SpatialGradientScaling`.

    Attributes:
        sgs: the controller, from ``on_train_begin`` on.
    """

    sgs: SpatialGradientScaling

    def __init__(
        self,
        trainer: Trainer,
        *,
        batches: int = 2,
        forward: Callable[[Any], Any] | str = "pixel_values",
        **options: Any,
    ) -> None:
        self.trainer = trainer
        if SpatialGradientScalingState not in map(type, trainer.callback_handler.callbacks):
            trainer.add_callback(SpatialGradientScalingState())
        self.batches = batches
        self.forward = forward
        self.options = options
        self._starting = False  # an epoch whose measurement waits for its first step
        self._step: Callable[..., Tensor] | None = None  # that scales, while it does
        self._replaced: Callable[..., Tensor] | None = None  # what the trainer itself held instead

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the convolutions, load the state of a resumed run, and scale after each training step."""
        self._restore()  # a train() that was interrupted had no on_train_end
        self.sgs = SpatialGradientScaling(self.trainer.model, **self.options)
        self._epoch = int(state.epoch or 0)  # counted from here on: it is late for data without a length
        saved = state.stateful_callbacks.get(SpatialGradientScalingState.__name__, [])
        saved = saved if isinstance(saved, list) else [saved]  # of the one callback in older checkpoints
        position = self._siblings().index(self)
        if position < len(saved):
            self.sgs.load_state_dict(_with_tensors(saved[position]["saved"]))
        self.sgs.check_epochs(state.num_train_epochs)
        if self.sgs.apply == "update":
            self.sgs.attach(kwargs["optimizer"])
            return
        self.sgs.check_optimizer(kwargs["optimizer"])
        training_step = self.trainer.training_step

        def training_step_and_scaling(*args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = training_step(*args, **kwargs)
            if self._step is training_step_and_scaling and self.trainer.accelerator.sync_gradients:
                self.sgs.scale_gradients()
            return loss

        self._replaced = vars(self.trainer).get("training_step")
        self.trainer.training_step = self._step = training_step_and_scaling

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure on a stream, since reading it later would move it on; leave other data to the first step.

        In a resumed run the ``Trainer`` has the random states and the order of the epoch only then.
        """
        loader = kwargs["train_dataloader"]
        self._starting = not isinstance(getattr(loader, "dataset", None), IterableDataset)
        if not self._starting:
            self._start_epoch(state, loader)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure in the first step of an epoch."""
        if self._starting:
            self._starting = False
            self._start_epoch(state, kwargs["train_dataloader"])

    def _start_epoch(self, state: TrainerState, loader: Any) -> None:
        """Measure, if it is due, and pass the scalings to the next checkpoints."""
        self.sgs.start_epoch(self._epoch, loader, batches=self.batches, forward=self.forward)
        self._epoch += 1
        state.stateful_callbacks[SpatialGradientScalingState.__name__] = [
            {"args": {}, "attributes": {}, "saved": _with_numbers(callback.sgs.state_dict())}
            for callback in self._siblings()
        ]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the trainer and its optimizer as they were."""
        self._restore()

    def _siblings(self) -> list["SpatialGradientScalingCallback"]:
        """Return the trainer's callbacks for SGS, in its order, in which their states are saved."""
        return [c for c in self.trainer.callback_handler.callbacks if isinstance(c, SpatialGradientScalingCallback)]

    def _restore(self) -> None:
        if "sgs" in vars(self):
            self.sgs.remove()
        if self._step is not None and vars(self.trainer).get("training_step") is self._step:
            if self._replaced is None:
                del self.trainer.training_step
            else:
                self.trainer.training_step = self._replaced
        for sibling in self._siblings():
            if self._step is not None and sibling._replaced is self._step:  # it puts back what was there before both
                sibling._replaced = self._replaced
        self._step = self._replaced = None  # inside a wrapper of someone else, it no longer scales


def _with_numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state, "scalings": {name: scaling.tolist() for name, scaling in state["scalings"].items()}}


def _with_tensors(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {**saved, "scalings": {name: torch.tensor(values) for name, values in saved["scalings"].items()}}


class PowerGradLoss:
    """Cross-entropy with the gradient of PGT: ``Trainer(compute_loss_func=PowerGradLoss(alpha=0.3))``.

    The ``Trainer`` does not divide the loss of a ``compute_loss_func`` by the number of accumulated batches, and passes
    the number of labels other than -100 in all of them instead: the loss is the sum over labels divided by their
    number, so that accumulation changes nothing. With class weights too the sum is divided by that number, and not by
    the sum of their weights. Floating-point labels are probabilities, with an element for each
    class (mixup, distillation).

    Args:
        alpha: exponent, above 0.
        options: of :func:`backpass.power_grad_cross_entropy`, such as ``label_smoothing``; without ``reduction``.

    Raises:
        InputError: an ``ignore_index`` other than -100, which the ``Trainer`` would count.
    """

    def __init__(self, alpha: float, **options: Any) -> None:
        if (ignored := options.get("ignore_index", _IGNORED)) != _IGNORED:
            raise InputError(
                f"expected ignore_index={_IGNORED}, since the Trainer counts all other labels, got {ignored}; set "
                f"these labels to {_IGNORED} in the data set"
            )
        self.alpha = alpha
        self.options = options

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss of a model's outputs, which hold ``logits``."""
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        if num_items_in_batch is None:
            return power_grad_cross_entropy(logits, labels, alpha=self.alpha, **self.options)
        total = power_grad_cross_entropy(logits, labels, alpha=self.alpha, reduction="sum", **self.options)
        if isinstance(num_items_in_batch, Tensor):
            # A number; or, under DataParallel, the same for each device, for losses that the devices compute themselves
            # and that the Trainer averages after multiplying them with the number of devices.
            num_items_in_batch = num_items_in_batch.to(total.device).sum()
        elements = logits.shape[1] if labels.is_floating_point() else 1
        return total * elements / num_items_in_batch
