"""Frameworks: the gradients of each, with both methods, are those of the plain loop at every step."""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from integrations.plain_loop import Gradients, assert_same, plain
from works_with.case import Case, Way

Trained = Callable[[Path, int, float | None, bool], Gradients]  # folder, accumulation, clipping, autocast

SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    ", accumulation over 4 batches and clipping": {"accumulate": 4, "clip": 0.05},
    ", bfloat16": {"autocast": True},
    ', `precision="bf16-true"`': {"dtype": torch.bfloat16},
    ', `precision="64-true"`': {"dtype": torch.float64},
}
PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true", torch.float64: "64-true"}


def cases() -> list[Case]:
    """Return a case for each framework and setting."""
    made = []
    for name, (run, sgs, pgt) in FRAMEWORKS.items():
        for addition, setting in SETTINGS.items():
            # timm's loop has no autocast of its own, and only Lightning casts models and batches.
            if not ((run is timm and "autocast" in setting) or (run is not lightning and "dtype" in setting)):
                steps = partial(_steps, run, tuple(setting.items()))
                made.append(
                    Case(
                        name + addition,
                        [Way(sgs, partial(compare, steps, setting, "sgs"))],
                        [Way(pgt, partial(compare, steps, setting, "pgt"))],
                    )
                )
    return made


def compare(steps: Callable[[], Gradients], setting: dict[str, Any], method: str) -> None:
    """Check that the gradients are those of the plain loop, and not those of the plain loop without a method."""
    autocast = setting.get("autocast", False)
    assert_same(steps(), plain(**setting), autocast=autocast)
    with pytest.raises(AssertionError, match="step"):
        assert_same(steps(), plain(**setting, **{method: False}), autocast=autocast)


@cache
def _steps(run: Callable[..., Gradients], setting: tuple[tuple[str, Any], ...]) -> Gradients:
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), **dict(setting))


def lightning(
    folder: Path,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Gradients:
    """Return the gradients of Lightning's trainer."""
    from integrations.lightning_loop import trained

    options: dict[str, Any] = {"precision": "bf16-mixed" if autocast else PRECISIONS[dtype]}
    steps: Gradients = trained(folder, accumulate_grad_batches=accumulate, gradient_clip_val=clip, **options)[0]
    return steps


def lightning_manual(folder: Path, **_: Any) -> Gradients:
    """Return the gradients of a LightningModule that steps itself."""
    from integrations.lightning_loop import Module, trained

    steps: Gradients = trained(folder, module=Module(manual=True))[0]
    return steps


def transformers(folder: Path, **setting: Any) -> Gradients:
    """Return the gradients of the Hugging Face Trainer."""
    from integrations.test_transformers import trained

    return trained(folder, **setting)


def accelerate(folder: Path, **setting: Any) -> Gradients:
    """Return the gradients of a loop on Accelerate."""
    from accelerate.state import AcceleratorState

    from integrations.test_accelerate import trained

    AcceleratorState._reset_state(reset_partial_state=True)
    return trained(**setting)


def timm(folder: Path, **setting: Any) -> Gradients:
    """Return the gradients of the loop of timm's script."""
    from integrations.test_timm import trained

    return trained(**setting)


# What makes the gradients, and what to write for SGS and PGT.
FRAMEWORKS: dict[str, tuple[Callable[..., Gradients], str, str]] = {
    "Lightning": (lightning, "`Trainer(callbacks=[SpatialGradientScalingCallback(k=5.0)])`", ""),
    "Hugging Face `Trainer`": (
        transformers,
        "`trainer.add_callback(SpatialGradientScalingCallback(trainer, k=5.0))`",
        "`Trainer(compute_loss_func=PowerGradLoss(alpha=0.3))`",
    ),
    "Accelerate": (accelerate, "`if accelerator.sync_gradients: sgs.scale_gradients()` before clipping", ""),
    "timm's `train.py`": (timm, "`loss_scaler = ScalingLossScaler(sgs)`", ""),
}
