"""SGS in the loop of timm's ``train.py``. PGT needs nothing: its loss is a criterion, also for ``timm.task``."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from backpass.errors import InputError, missing_extra
from backpass.sgs import SpatialGradientScaling

try:
    from timm.utils.clip_grad import dispatch_clip_grad
except ImportError as error:
    raise missing_extra("timm", "lab", "the loss scaler for timm") from error

__all__ = ["ScalingLossScaler"]


class ScalingLossScaler:
    """Scale gradients where timm clips them: ``loss_scaler = ScalingLossScaler(sgs)`` instead of ``NativeScaler()``.

    Called as ``loss_scaler(loss, optimizer, ...)`` it does backward and, at the last micro-batch, scales the gradients,
    unscales them from the AMP loss scale, clips them and makes the step. Its state holds the controller's, so that the
    script's checkpoints (``CheckpointSaver(amp_scaler=loss_scaler)``, ``resume_checkpoint``) resume exactly.

    Args:
        sgs: the controller.
        device: type of device, as of ``torch.amp.GradScaler``.
        enabled: scale the loss, for float16. ``False`` serves training without AMP and with bfloat16.
    """

    state_dict_key = "amp_scaler"

    def __init__(self, sgs: SpatialGradientScaling, device: str = "cuda", *, enabled: bool = True) -> None:
        self.sgs = sgs
        self._scaler = torch.amp.GradScaler(device, enabled=enabled)

    def __call__(
        self,
        loss: Tensor,
        optimizer: Optimizer,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Iterable[Tensor] | None = None,
        create_graph: bool = False,
        need_update: bool = True,
    ) -> None:
        """Run backward and, with ``need_update``, the step.

        Raises:
            InputError: ``clip_grad`` without ``parameters``.
        """
        if need_update and clip_grad is not None and parameters is None:
            raise InputError(f"expected parameters to clip with clip_grad={clip_grad}, got none; pass parameters=")
        torch.autograd.backward(self._scaler.scale(loss), create_graph=create_graph)
        if not need_update:
            return
        if self.sgs.apply == "gradient":
            self.sgs.check_optimizer(optimizer)
            self.sgs.scale_gradients()
        if clip_grad is not None:
            self._scaler.unscale_(optimizer)
            dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
        if self.sgs.apply == "update":
            with self.sgs.scaled_update():
                self._scaler.step(optimizer)
        else:
            self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loss scale and of the controller."""
        return {"scaler": self._scaler.state_dict(), "sgs": self.sgs.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the loss scale and of the controller.

        Raises:
            InputError: a state without the controller's, as ``NativeScaler`` saves it.
        """
        if "sgs" not in state_dict:
            raise InputError(
                f"expected a state with sgs and scaler, got {', '.join(state_dict) or 'an empty one'}; load it into "
                "the loss scaler that saved it, or leave the loss scale out of the resumed checkpoint"
            )
        self._scaler.load_state_dict(state_dict["scaler"])
        self.sgs.load_state_dict(state_dict["sgs"])
