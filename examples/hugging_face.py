"""The Hugging Face Trainer on a ResNet made from a config. `# backpass` marks changes."""

import tempfile

import torch
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from backpass.integrations.transformers import PowerGradLoss, SpatialGradientScalingCallback  # backpass

torch.manual_seed(0)
data = [{"pixel_values": torch.randn(3, 32, 32), "labels": number % 4} for number in range(32)]
config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        ResNetForImageClassification(config),
        TrainingArguments(
            folder, num_train_epochs=2, gradient_accumulation_steps=2, optim="sgd", use_cpu=True, report_to="none"
        ),
        train_dataset=data,
        compute_loss_func=PowerGradLoss(alpha=0.3),  # backpass
    )
    trainer.add_callback(SpatialGradientScalingCallback(trainer, k=5.0))  # backpass
    print(trainer.train().metrics["train_loss"])
