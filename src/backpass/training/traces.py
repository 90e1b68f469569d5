"""What pictures of a run need: scalings and kernels over time, norms of logits and gradients, calibration.

Nothing here changes a run: traces are read from what training computes anyway, on a few steps of each epoch.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from backpass.errors import InputError
from backpass.sgs import scalable_convs
from backpass.training.method import Method
from backpass.training.task import Total

__all__ = ["TraceRecorder", "Traces", "scalings_of"]

_STEPS = 16  # at least
_KERNEL_EPOCHS = 8
_DIGITS = 5
_DECILES = 11

ByLayer = dict[str, list[Any]]
"""A tensor of a kernel's spatial shape as nested lists, by parameter name."""


@dataclass
class Traces:
    """What a run leaves for pictures, as plain values of five significant digits.

    Epochs count the epochs trained before: 0 is the start of training.

    Attributes:
        scalings: the scalings of SGS that apply from an epoch on: those of the start (1 everywhere, unless fixed or
            measured at once) and of each refresh, by epoch and parameter name.
        kernels: mean absolute weight over the input and output channels, tap by tap, of each kernel that SGS could
            scale: at the start, after each eighth of the epochs, and at the end, by epoch and parameter name.
        norm_weights: deciles, from the smallest to the largest of 11, of the weight of each normalisation layer at the
            end, by parameter name.
        reliability: of the most probable class on the evaluated split after the last epoch: the number of images, the
            mean probability and the accuracy in each of 15 bins of equal width
            (:class:`~backpass.training.calibration.CalibrationError`). At ``""`` for the logits z and, with ``pgt``,
            at ``"_at_alpha"`` for alpha * z: the suffixes of the metrics.
    """

    scalings: dict[int, ByLayer] = field(default_factory=dict)
    kernels: dict[int, ByLayer] = field(default_factory=dict)
    norm_weights: dict[str, list[float]] = field(default_factory=dict)
    reliability: dict[str, list[list[float]]] = field(default_factory=dict)


@runtime_checkable
class _HasReliability(Protocol):
    def reliability(self, total: Total) -> dict[str, Tensor]: ...


class TraceRecorder:
    """Records the :class:`Traces` of a run, and the norms of logits and gradients for its history.

    Logits and gradients are read on 16 to 31 steps of each epoch, evenly spaced, or on all where there are fewer;
    sums stay on the device until the end of the epoch. Steps follow from the epoch's length alone, so a resumed run
    has the traces of the run that was never stopped.

    Args:
        epochs: of the run.
        device: of the model.
        enabled: record anything at all.
    """

    def __init__(self, epochs: int, device: torch.device, *, enabled: bool = True) -> None:
        self.traces = Traces()
        self._epochs, self._enabled = epochs, enabled
        self._kernel_epochs = {round(epochs * part / _KERNEL_EPOCHS) for part in range(_KERNEL_EPOCHS + 1)}
        self._sampled = False
        self._evaluation: object = None
        # Images, their norms and spreads; steps, their gradient norms and the squares of these.
        self._sums = torch.zeros(6, dtype=torch.float64, device=device)

    def start_epoch(self, epoch: int, model: nn.Module, methods: Iterable[Method], measured: bool) -> None:
        """Record the scalings after a refresh, and what there is at the start of training."""
        if not self._enabled:
            return
        self._sums.zero_()
        if (measured or epoch == 0) and (scalings := scalings_of(methods)):
            self.traces.scalings[epoch] = _plain(scalings)
        if epoch == 0:
            self.traces.kernels[0] = _plain(_kernel_magnitudes(model))

    def start_step(self, step: int, steps: int) -> None:
        """Decide whether step ``step`` of ``steps`` is one that is read."""
        self._sampled = self._enabled and step % max(1, steps // _STEPS) == 0

    def output(self, output: Any) -> None:
        """Read the output of a forward pass, if it is a tensor ``(N, C)``: logits."""
        if not self._sampled or not isinstance(output, Tensor) or output.ndim != 2:
            return
        logits = output.detach().float()
        norm, spread = logits.norm(dim=1), logits.std(dim=1, correction=0)
        self._add(0, norm, spread)

    def gradients(self, model: nn.Module) -> None:
        """Read the gradient of the loss, before a method alters it."""
        if not self._sampled:
            return
        norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        self._add(3, norm, norm.double().square())

    def _add(self, place: int, *values: Tensor) -> None:
        finite = values[0].isfinite()  # A step with overflow under a loss scale is skipped by the optimizer too.
        rows = [finite.double(), *(torch.where(finite, value.double(), 0.0) for value in values)]
        self._sums[place : place + 3] += torch.stack([row.sum() for row in rows])

    def statistics(self, total: Total) -> dict[str, float]:
        """Return the numbers of the epoch over all processes, as :class:`~backpass.training.outcome.Outcome` lists."""
        images, norm, spread, steps, gradient, squares = total(self._sums).tolist()
        found: dict[str, float] = {}
        if images:
            found |= {"train_logit_norm": norm / images, "train_logit_spread": spread / images}
        if steps:
            mean = gradient / steps
            deviation = max(0.0, squares / steps - mean * mean) ** 0.5
            found |= {"train_gradient_norm": mean, "train_gradient_norm_std": deviation}
        return found

    def evaluated(self, evaluation: object) -> None:
        """Keep the last evaluation, whose bins :meth:`end_epoch` reads at the end of training."""
        self._evaluation = evaluation

    def end_epoch(self, epoch: int, model: nn.Module, total: Total) -> None:
        """Record the kernels at the chosen epochs and, at the end, normalisation layers and calibration."""
        if not self._enabled:
            return
        if epoch + 1 in self._kernel_epochs:
            self.traces.kernels[epoch + 1] = _plain(_kernel_magnitudes(model))
        if epoch + 1 == self._epochs:
            self.traces.norm_weights = _plain(_norm_weights(model))
            if isinstance(self._evaluation, _HasReliability):
                self.traces.reliability = _plain(self._evaluation.reliability(total))

    def state_dict(self) -> dict[str, Any]:
        """Return the traces as nested containers."""
        return asdict(self.traces)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the traces of :meth:`state_dict`.

        Raises:
            InputError: it has other parts.
        """
        own = asdict(Traces())
        if state.keys() != own.keys() or not all(isinstance(part, dict) for part in state.values()):
            raise InputError(
                f"expected traces of the checkpoint to hold dictionaries {sorted(own)}, got {sorted(map(str, state))}; "
                "remove the checkpoint"
            )
        self.traces = Traces(**state)


def scalings_of(methods: Iterable[Method]) -> dict[str, Tensor]:
    """Return the scalings of the methods that have any, by parameter name, on the CPU."""
    states = [method.state_dict() for method in methods]
    return {name: scaling.cpu() for state in states for name, scaling in state.get("scalings", {}).items()}


def _kernel_magnitudes(model: nn.Module) -> dict[str, Tensor]:
    try:
        layers = scalable_convs(model)
    except InputError:  # A model without a kernel to scale has nothing to show.
        return {}
    return {name: layer.parameter.detach().float().abs().mean((0, 1)) for name, layer in layers.items()}


def _norm_weights(model: nn.Module) -> dict[str, Tensor]:
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    weights = {
        f"{name}.weight": module.weight.detach().float().flatten()
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module.weight is not None
    }
    return {
        name: weight.quantile(torch.linspace(0, 1, _DECILES, device=weight.device)) for name, weight in weights.items()
    }


def _plain(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return tensors as nested lists of rounded numbers; one that is not finite, as of a diverged run, is left out."""
    return {name: _rounded(tensor.tolist()) for name, tensor in tensors.items() if bool(tensor.isfinite().all())}


def _rounded(value: Any) -> Any:
    return [_rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.{_DIGITS}g}")
