"""Training settings of the SGS paper (ICLR 2023) and its published configuration files."""

from backpass.training.recipe import DataSettings, OptimizerSettings, Recipe, ScheduleSettings, SgsSettings

__all__ = ["CIFAR_200", "CIFAR_600"]

# Table 4: 17 CIFAR-100 models, 200 epochs, batch 128, SGD 0.1, decay 5e-4 on all parameters, cosine per step to 1e-6.
CIFAR_200 = Recipe(
    model="vgg11_bn",
    data=DataSettings(name="cifar100"),
    epochs=200,
    batch_size=128,
    optimizer=OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=5e-4),
    schedule=ScheduleSettings(final_lr=1e-6),
    sgs=SgsSettings(k=5.0, every=5, batches=2),
)

# Table 1: VGG-16 with the small head, 600 epochs, decay 1e-4, a refresh every 30 epochs on 20 batches.
CIFAR_600 = Recipe(
    model="vgg16_small",
    data=DataSettings(name="cifar10"),
    epochs=600,
    batch_size=128,
    optimizer=OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=1e-4),
    schedule=ScheduleSettings(final_lr=1e-6),
    sgs=SgsSettings(k=5.0, every=30, batches=20),
)
