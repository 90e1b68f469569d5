"""SGS as a callback of Lightning."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch.optim import Optimizer

from backpass._internal.batches import Forward, forward_on
from backpass._internal.modes import flagged
from backpass.errors import InputError, missing_extra
from backpass.sgs import SpatialGradientScaling

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise missing_extra("lightning", "lightning", "the callbacks for Lightning") from error

__all__ = ["SpatialGradientScalingCallback"]


class SpatialGradientScalingCallback(Callback):
    """Train with Spatial Gradient Scaling: ``Trainer(callbacks=[SpatialGradientScalingCallback(k=5.0)])``.

    Measures at the start of the epochs where it is due, on the first batches of the training loader as
    ``training_step`` receives them, after the hooks of the transfer to the device (``on_after_batch_transfer`` and the
    others), and scales in ``on_before_optimizer_step``: once per optimizer step, on accumulated and unscaled gradients,
    before Lightning clips them. Under manual optimization this is inside ``optimizer.step()``, so after
    ``self.clip_gradients``; to clip there, call ``callback.sgs.scale_gradients()`` before it and pass ``scale=False``.
    The scalings are part of Lightning's checkpoints. A trainer takes several callbacks, such as one for each part of
    the module, where each has an ``include`` of its own: other patterns, or a function of another name.

    Args:
        batches: the number of batches to measure on.
        forward: runs the module on a batch, as ``forward(module, batch)``; or the name of the input in batches that are
            mappings. Default: ``module(input)``, with the input the batch or its first item. In the trainer's precision
            in each case.
        loader: the loader to measure on; default: the training loader.
        scale: ``False`` leaves calling ``sgs.scale_gradients()`` or ``sgs.scaled_update()`` to the module.
        options: of :class:`backpass.SpatialGradientScaling`.

    Attributes:
        sgs: the controller, from ``on_fit_start`` on.

    Raises:
        InputError: at the first measurement, several training loaders and no ``loader``.
    """

    sgs: SpatialGradientScaling

    def __init__(
        self,
        *,
        batches: int = 2,
        forward: Callable[[LightningModule, Any], Any] | str | None = None,
        loader: Iterable[Any] | None = None,
        scale: bool = True,
        **options: Any,
    ) -> None:
        self.batches = batches
        self.forward = forward
        self.loader = loader
        self.scale = scale
        self.options = options
        self._evaluating = False
        self._loaded: dict[str, Any] | None = None  # for the next on_fit_start
        self._begun: int | None = None  # the epoch that on_train_epoch_start was called for

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint, which tells it from a callback with another ``include``."""
        include = self.options.get("include")
        key = super().state_key
        if include is not None:
            name = getattr(include, "__qualname__", type(include).__qualname__) if callable(include) else tuple(include)
            key = self._generate_state_key(include=name)
        return str(key)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the controller of an earlier fit."""
        self._evaluating = stage != "fit"
        if stage == "fit" and "sgs" in vars(self):
            self.sgs.remove()
            del self.sgs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the convolutions; load the state of a resumed checkpoint."""
        self.sgs = SpatialGradientScaling(pl_module, **self.options)
        if self._loaded is not None:
            self.sgs.load_state_dict(self._loaded)
            self._loaded = None
        self._begun = None
        for optimizer in trainer.optimizers:
            if self.scale and self.sgs.apply == "update":
                self.sgs.attach(optimizer)
            else:
                self.sgs.check_optimizer(optimizer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the fit ends before it measures."""
        self.sgs.check_epochs(_epochs(trainer, pl_module))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, if it is due."""
        self._begun = trainer.current_epoch
        loader = trainer.train_dataloader if self.loader is None else self.loader
        if isinstance(loader, dict | list | tuple) and self.loader is None:
            raise InputError(
                f"expected one training loader, got {type(loader).__name__} of {len(loader)}; pass the one to measure "
                "on as loader=..."
            )
        forward = self._forward_in_training(trainer, pl_module)
        self.sgs.start_epoch(trainer.current_epoch, loader, batches=self.batches, forward=forward)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure, if it is due and the epoch began without ``on_train_epoch_start``.

        Lightning does not call that for the epoch after a checkpoint of the last step of an epoch.
        """
        if self._begun != trainer.current_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def _forward_in_training(self, trainer: Trainer, module: LightningModule) -> Forward:
        """Return a function that runs the module on what ``training_step`` receives of a batch, in its precision."""
        strategy, precision = trainer.strategy, trainer.precision_plugin
        if isinstance(self.forward, str | None):
            run = forward_on(module, strategy.root_device, self.forward)
        else:
            run = partial(self.forward, module)
        modes = {part: part.training for part in module.modules()}

        def forward(batch: Any) -> Any:
            with flagged(modes):  # measuring runs the module in eval mode, where a hook may not augment
                batch = _before_transfer(trainer, module, precision.convert_input(batch))
                batch = strategy.batch_to_device(batch)
            with precision.forward_context():
                return run(batch)

        return forward

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Scale the gradients of the kernels that the optimizer holds."""
        if self.scale and self.sgs.apply == "gradient":
            self.sgs.scale_gradients(optimizer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the optimizers."""
        self.sgs.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forget the checkpoint of a fit that failed before it started."""
        self._evaluating, self._loaded = False, None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load states again, after an evaluation."""
        self._evaluating = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the controller, for Lightning's checkpoint; before ``on_fit_start``, what was loaded."""
        return self.sgs.state_dict() if "sgs" in vars(self) else self._loaded or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a checkpoint that training resumes from, or keep it until the controller exists."""
        if self._evaluating:  # Lightning restores the callbacks for trainer.test(ckpt_path=...), too
            return
        if "sgs" in vars(self):  # FSDP2 and DeepSpeed restore after ``on_fit_start``
            self.sgs.load_state_dict(state_dict)
        else:
            self._loaded = state_dict


def _before_transfer(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Call the hook of the data module, if it has one, otherwise of the module, as the training loop does."""
    data, name = trainer.datamodule, "on_before_batch_transfer"
    holder: Any = module
    # By name, since lightning.pytorch and pytorch_lightning each have a base class, and both may be installed.
    for base in [kind for kind in type(data).__mro__ if kind.__name__ == "LightningDataModule"]:
        if name in vars(data) or getattr(type(data), name) is not getattr(base, name):
            holder = data
    return getattr(holder, name)(batch, 0)


def _epochs(trainer: Trainer, module: LightningModule) -> float:
    """Return the number of epochs that a fit has at most; 0 where that is not known."""
    limits = [float(trainer.max_epochs)] if trainer.max_epochs is not None and trainer.max_epochs > 0 else []
    batches = float(trainer.num_training_batches)
    # Under manual optimization the number of steps that a batch takes is not known.
    if module.automatic_optimization and trainer.max_steps > 0 and 0 < batches < math.inf:
        limits.append(trainer.max_steps / math.ceil(batches / trainer.accumulate_grad_batches))
    return min(limits, default=0.0)
