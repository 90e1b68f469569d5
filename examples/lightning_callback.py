"""Lightning, with accumulation and clipping. `# backpass` marks changes."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import backpass  # backpass
from backpass.integrations.lightning import SpatialGradientScalingCallback  # backpass


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 10)
        )
        self.criterion = backpass.PowerGradCrossEntropyLoss(alpha=0.3)  # backpass: instead of CrossEntropyLoss()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        return self.criterion(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


lightning.seed_everything(0, verbose=False)
data = TensorDataset(torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))
callback = SpatialGradientScalingCallback(k=5.0)  # backpass
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    accumulate_grad_batches=2,
    gradient_clip_val=1.0,
    callbacks=[callback],  # backpass
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(Classifier(), DataLoader(data, batch_size=8))
print("measured", sorted(callback.sgs.scalings))
