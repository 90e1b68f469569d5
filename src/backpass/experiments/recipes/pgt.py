"""The recipe of the ImageNet runs of the PowerGrad Transform (Das et al., arXiv 2111.12495)."""

from backpass.training.recipe import DataSettings, OptimizerSettings, PgtSettings, Recipe, ScheduleSettings
from backpass.training.stream import StreamAugmentation

__all__ = ["PGT_IMAGENET"]

# Batch 256 on each of 4 GPUs, SGD 0.1, decay 5e-4, 5 warm-up epochs, 90 epochs and 10 of cool-down. The schedules' ends
# (1e-4; a tenth every 30 epochs) and the augmentation (crop and flip) are the defaults of the published code. It starts
# the last normalisation of a block at zero, as timm's default does. The decay of norms and biases, and a warm-up from
# near 0, are ours.
PGT_IMAGENET = Recipe(
    model="timm/resnet18",
    data=DataSettings(name="imagenet"),
    epochs=100,
    batch_size=1024,
    optimizer=OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=5e-4),
    schedule=ScheduleSettings(final_lr=1e-4, warmup_epochs=5, cooldown_epochs=10, step_epochs=30, step_factor=0.1),
    stream_augmentation=StreamAugmentation(color_jitter=0.0),
    pgt=PgtSettings(alpha=0.25),
)
