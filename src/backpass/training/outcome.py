"""What training leaves: one record per epoch, and what describes the end."""

from dataclasses import dataclass, field

from torch import Tensor

from backpass.training.traces import Traces

__all__ = ["EpochRecord", "Outcome"]

EpochRecord = dict[str, float]
"""The numbers of one epoch by name, see :class:`Outcome`."""


@dataclass
class Outcome:
    """What a finished run leaves.

    All losses and metrics are over all processes, and the same on each. With validation images, these are evaluated
    instead of the test images, and ``validation_`` replaces ``test_`` in the names.

    Attributes:
        history: one record per epoch:

            - ``epoch``, from 0, and ``lr``, the learning rate of its first step;
            - ``train_loss``: mean training loss, with label smoothing, and ``train_accuracy``: top-1 accuracy as a
              fraction; both over the augmented batches of the epoch, each as the model was before its step;
            - ``test_loss``: mean cross-entropy in nats, ``test_accuracy``: top-1 accuracy as a fraction, and
              ``test_calibration_error``: expected calibration error of the most probable class, as a fraction, over 15
              bins of equal width; all of the logits z after the epoch;
            - ``test_loss_at_alpha`` and ``test_calibration_error_at_alpha``, with ``pgt`` alone: the same of the logits
              alpha * z, of whose cross-entropy the PowerGrad Transform has the gradient; all of these only in epochs
              that end with an evaluation (``Runtime.evaluate_every``);
            - ``train_logit_norm`` and ``train_logit_spread``: means over training images of the Euclidean norm of the
              logits and of their standard deviation over the classes; ``train_gradient_norm`` and
              ``train_gradient_norm_std``: mean and standard deviation over steps of the Euclidean norm of the loss's
              gradient, before any method alters it; all on 16 to 31 steps of the epoch, or on all where there are
              fewer, with ``Runtime.traces`` alone;
            - ``train_seconds``, ``measure_seconds`` (SGS and DyRep) and ``evaluate_seconds``;
            - on GPUs, ``gpus``: their number, and ``peak_memory``: the largest number of bytes allocated on the first.
        scalings: the last scalings of SGS by parameter name; empty without SGS.
        traces: what figures need; empty without ``Runtime.traces``.
    """

    history: list[EpochRecord]
    scalings: dict[str, Tensor] = field(default_factory=dict)
    traces: Traces = field(default_factory=Traces)

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all epochs on all GPUs; ``None`` where one ran on a CPU."""
        if any("gpus" not in record for record in self.history):
            return None
        phases = ("train_seconds", "measure_seconds", "evaluate_seconds")
        return sum(record["gpus"] * sum(record[phase] for phase in phases) for record in self.history) / 3600

    @property
    def peak_memory(self) -> int | None:
        """Largest number of bytes allocated on the first GPU in any epoch; ``None`` where one ran on a CPU."""
        peaks = [record.get("peak_memory") for record in self.history]
        known = [int(peak) for peak in peaks if peak is not None]
        return max(known) if known and len(known) == len(peaks) else None
