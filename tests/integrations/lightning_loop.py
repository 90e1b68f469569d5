"""The plain loop as a LightningModule, trained with the callback."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

import backpass
from backpass.integrations.lightning import SpatialGradientScalingCallback
from integrations.plain_loop import ALPHA, EPOCHS, OPTIONS, loader, net, optimizer_of, recorded


class Module(LightningModule):
    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.model = net()
        self.automatic_optimization = not manual
        self.criterion = backpass.PowerGradCrossEntropyLoss(alpha=ALPHA)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    test_step = validation_step = predict_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = optimizer_of(self)
        self.steps = recorded(optimizer, self.model)
        return optimizer


def trained(
    folder: Path,
    *,
    epochs: int = EPOCHS,
    module: Module | None = None,
    resume: Path | None = None,
    forward: Any = None,
    sgs: dict[str, Any] | None = None,
    batches: Any = None,
    callbacks: list[Any] | None = None,
    **options: Any,
) -> Any:
    module = module or Module()
    callbacks = callbacks or [SpatialGradientScalingCallback(forward=forward, **(OPTIONS | (sgs or {})))]
    trainer = trainer_of(folder, callbacks, max_epochs=epochs, **options)
    trainer.fit(module, batches or loader(), ckpt_path=resume)
    return module.steps, trainer


def trainer_of(folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **quiet, **options)
