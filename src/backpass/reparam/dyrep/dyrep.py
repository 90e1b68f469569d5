"""DyRep: branches are added during training where they help most, and removed where they do not.

Huang et al., "DyRep: Bootstrapping Training with Dynamic Re-parameterization", CVPR 2022.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from backpass._internal.several_processes import several_processes
from backpass._internal.wrappers import unwrap
from backpass.errors import BackpassWarning, InputError, StateError
from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.blocks.dbb_dyrep import DyRepBlock
from backpass.reparam.conversion.block_map import block_map, restore_blocks
from backpass.reparam.conversion.conv_norm_pairs import find_pairs
from backpass.reparam.conversion.module_replacement import undone_on_error
from backpass.reparam.conversion.probe import Probe
from backpass.reparam.dyrep.growth import eligible_convs, grow, untouched_rng
from backpass.reparam.dyrep.parameter_groups import GroupOf, ParameterGroups
from backpass.reparam.dyrep.pruning import branch_weights, prune, weak_branches
from backpass.reparam.dyrep.recalibration import recalibrate
from backpass.reparam.dyrep.scores import METRICS, conv_score

__all__ = ["Adjustment", "DyRep"]

_STATE_KEYS = ("blocks", "groups", "records", "metric", "generator")


@dataclass(frozen=True)
class Adjustment:
    """What one :meth:`DyRep.adjust` did.

    Attributes:
        scores: the mean score of each convolution since the last adjustment, largest first.
        grown: the convolution that became a block; ``None`` if none could.
        cut: the branches cut from each block, by the block's name.
    """

    scores: Mapping[str, float]
    grown: str | None
    cut: Mapping[str, list[str]]


class DyRep:
    """Grows the convolution with the largest score into a block every few epochs, and prunes all blocks.

    ::

        dyrep = DyRep(model, optimizer)                 # before DistributedDataParallel and torch.compile
        for epoch in range(epochs):
            for x, y in loader:
                criterion(model(x), y).backward()       # then unscale and clip
                dyrep.record()
                optimizer.step(); optimizer.zero_grad()
            if dyrep.due(epoch):
                dyrep.adjust(batches)                   # then wrap again, rebuild averages of the weights
        fuse(model.eval())

    The optimizer's group dicts stay the same objects, so schedulers continue to work; surviving parameters keep
    their momentum and new ones start without. After an adjustment there are new parameters: create
    ``DistributedDataParallel`` wrappers, compiled graphs and moving averages of the weights again, and call
    :meth:`~backpass.SpatialGradientScaling.set_model` of a :class:`~backpass.SpatialGradientScaling`. All processes
    draw the same branches from one seed and average scores and statistics, so they stay equal.

    Frozen convolutions do not grow, nor those that something else is attached to: with hooks or shared parameters, or
    with a weight that the forward pass reads (:func:`~backpass.reparam.reparameterize` lists the cases).

    Args:
        model: the plain network, not a wrapper around it.
        optimizer: holds the model's parameters.
        every: epochs between adjustments; 15 on CIFAR and 5 on ImageNet in the published settings.
        until: epoch from which on the structure stays; 500 of 600 on CIFAR, 100 of 120 on ImageNet.
        metric: ``"synflow"`` (the paper's), ``"snip"``, ``"grad_norm"`` or ``"random"``. In networks with batch
            normalisation ``synflow`` is an effect of its epsilon, see
            :func:`~backpass.reparam.dyrep.scores.conv_score`; ``snip`` is the one that does not vanish.
        recalibration_batches: batches that set the statistics of a new block's normalisations.
        group_of: which parameter group a new parameter enters, from its name and itself. Default: the one that holds
            the parameters of its kind (1-D ones and biases, or kernels).
        seed: of the new branches and of the random metric.
        probe: an input of the model, if its forward pass cannot be traced: used to know which convolutions a
            normalisation follows.

    Raises:
        InputError: an argument out of range, a wrapped model, no convolution that can grow, or an optimizer that does
            not hold the parameters of ``model`` or spreads each kind over several groups.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        every: int = 15,
        until: int = 500,
        metric: str = "synflow",
        recalibration_batches: int = 20,
        group_of: GroupOf | None = None,
        seed: int = 0,
        probe: Probe | None = None,
    ) -> None:
        if metric not in METRICS:
            raise InputError(f"expected metric to be one of {', '.join(METRICS)}, got {metric!r}; choose one of them")
        if every < 1 or until < 0 or recalibration_batches < 1:
            raise InputError(
                "expected every and recalibration_batches to be at least 1 and until at least 0, got "
                f"every={every}, recalibration_batches={recalibration_batches}, until={until}; "
                "choose other values"
            )
        if unwrap(model) is not model:
            raise InputError(
                "expected the network itself, whose modules DyRep changes, got it wrapped in "
                f"{type(model).__name__}; create DyRep first, wrap afterwards, and wrap again after each adjustment"
            )
        self.model = model
        self._followed, _, self._read, _ = find_pairs(model, probe)
        self._records: dict[str, Tensor]
        self._restart_records()
        if not self._convs:
            raise InputError(
                "expected an nn.Conv2d that can grow, trained, with a square odd kernel above 1, zero padding, no "
                "hooks, no shared parameters and a weight that no other code reads, got "
                f"{type(model).__name__} without one; check requires_grad and what is attached to the convolutions"
            )
        self.every = every
        self.until = until
        self.metric = metric
        self.recalibration_batches = recalibration_batches
        self._groups = ParameterGroups(model, optimizer, group_of)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device  # the model may have moved since

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self._device.type == "mps" else torch.float64

    def due(self, epoch: int) -> bool:
        """Return whether epoch ``epoch`` (the first is 0) ends with :meth:`adjust`."""
        return (epoch + 1) % self.every == 0 and epoch < self.until

    @torch.no_grad()
    def record(self) -> None:
        """Add this step's scores; call after backward, with unscaled and clipped gradients, before the step.

        Nothing waits for the device. A score that is not finite (a step that a loss scaler will skip) does not
        count, nor does a convolution without a gradient.
        """
        if self.metric == "random":
            drawn = torch.rand(len(self._convs), generator=self._generator, dtype=torch.float64, device="cpu")
            scores = dict(zip(self._convs, drawn, strict=True))
        else:
            scores = {
                name: conv_score(conv.weight, conv.weight.grad, self.metric)
                for name, conv in self._convs.items()
                if conv.weight.grad is not None
            }
        for name, score in scores.items():
            score = score.to(self._dtype)
            finite = score.isfinite()
            step = torch.stack([torch.where(finite, score, 0.0), finite.to(score.dtype)])
            self._records[name] = self._records[name].to(step.device) + step if name in self._records else step

    @torch.no_grad()
    def adjust(self, batches: Iterable[Any], forward: Callable[[Any], object] | None = None) -> Adjustment:
        """Grow the convolution with the largest mean score, prune all blocks, and return what was done.

        In eval mode the model computes the same as before. Gradients of replaced parameters are gone: call after
        ``zero_grad``. All processes must call it together.

        Args:
            batches: training batches, augmented as in training: input tensors, or tuples that start with one, in a
                list or a loader. ``recalibration_batches`` of them set the statistics of the new block's
                normalisations; no more are read, and random states are restored.
            forward: runs the model on a batch of any other form, or also parts that eval mode leaves out, such as
                auxiliary heads. Default: ``model(input)``, on its device.

        Raises:
            StateError: nothing was recorded since the last adjustment.
            InputError: no batch, or one that cannot be run, or a group that ``group_of`` names and that is not there.
                After any error, also one of ``group_of`` or ``forward``, the convolution is restored.
        """
        scores = self._mean_scores()
        if self._convs and not scores:
            raise StateError(
                "expected scores since the last adjustment, got none; call record() after each backward pass"
            )
        grown = next(iter(scores), None)
        if grown is not None:
            self._grow(grown, batches, forward)
        cut = self._prune()
        self._groups.update()
        self._restart_records()
        return Adjustment(scores, grown, cut)

    def state_dict(self) -> dict[str, Any]:
        """Return the structure, each parameter's group, the scores so far and the generator, as plain data and tensors.

        It loads with ``weights_only=True``.
        """
        return {
            "blocks": block_map(self.model),
            "groups": self._groups.placement(),
            "records": dict(self._records),
            "metric": self.metric,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rebuild the structure in the plain model and the optimizer's groups, and load the scores and the generator.

        Load it before the state dicts of model and optimizer, which need the structure.

        Raises:
            StateError: the model has blocks already.
            InputError: the state is not DyRep's, or is of another network, other parameter groups or another metric.
                Model and optimizer are left unchanged.
        """
        if block_map(self.model):
            raise StateError("expected a plain model, got one with blocks; load DyRep's state into the plain model")
        if missing := [key for key in _STATE_KEYS if key not in state]:
            raise InputError(
                f"expected a state with {', '.join(_STATE_KEYS)}, got one without {', '.join(missing)}; pass what "
                "DyRep.state_dict() returned"
            )
        if state["metric"] != self.metric:
            raise InputError(
                f"expected a state recorded with metric={self.metric!r}, got one with {state['metric']!r}; make DyRep "
                "with the metric of the state"
            )
        generator = torch.Generator()
        generator.set_state(state["generator"].cpu())
        device = torch.device("cpu") if self.metric == "random" else self._device
        records = {name: record.to(device, copy=True) for name, record in state["records"].items()}
        with untouched_rng(self._device), undone_on_error(self.model):  # in place, since not all models can be copied
            restore_blocks(self.model, state["blocks"], inplace=True)
            self._groups.check(state["groups"])
        self._groups.update(state["groups"])
        self._restart_records()
        self._records = records
        self._generator = generator

    def _restart_records(self) -> None:
        self._convs = {name: conv for name, conv in eligible_convs(self.model).items() if name not in self._read}
        self._records = {}

    def _mean_scores(self) -> dict[str, float]:
        """Return the scores averaged over steps and processes, largest first; ties in module order."""
        if not self._convs:
            return {}
        empty = torch.zeros(2, dtype=self._dtype, device="cpu")
        table = torch.stack([self._records.get(name, empty).to(self._device) for name in self._convs])
        if several_processes():
            dist.all_reduce(table)
        means = {name: total / count for name, (total, count) in zip(self._convs, table.tolist(), strict=True) if count}
        return dict(sorted(means.items(), key=lambda item: item[1], reverse=True))

    def _grow(self, name: str, batches: Iterable[Any], forward: Callable[[Any], object] | None) -> None:
        nested = any(isinstance(m, ReparamBlock) and name.startswith(f"{n}.") for n, m in self.model.named_modules())
        norm = self.model.get_submodule(self._followed[name]) if name in self._followed else None
        if not nested and (norm is None or norm.training != self.model.get_submodule(name).training):
            warnings.warn(
                f"DyRep grows {name}, which no batch normalisation follows directly in its mode: its output in train "
                "mode changes now, since the new branches normalise with the statistics of each batch.",
                BackpassWarning,
                stacklevel=3,
            )

        def prepare(block: ReparamBlock) -> None:
            norms = [cast(BatchNorm, m) for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
            recalibrate(self.model, norms, batches, limit=self.recalibration_batches, forward=forward)
            self._groups.update()  # here, since group_of may fail: nothing of the convolution has changed yet

        with undone_on_error(self.model):
            grow(self.model, name, generator=self._generator, prepare=prepare)

    def _prune(self) -> dict[str, list[str]]:
        cut: dict[str, list[str]] = {}
        gone: list[str] = []
        for name, block in [(n, m) for n, m in self.model.named_modules() if isinstance(m, DyRepBlock)]:
            if name.startswith(tuple(gone)):  # a block inside a branch that was cut just now
                continue
            if weak := weak_branches(branch_weights(block)):
                cut[name] = weak
                prune(block, weak)
                gone += [f"{name}.branches.{branch}." for branch in weak]
        return cut
