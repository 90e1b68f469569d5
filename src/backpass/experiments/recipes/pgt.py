"""The recipe of the ImageNet runs of the PowerGrad Transform (Das et al., arXiv 2111.12495)."""

from backpass.training.recipe import (
    DataSettings,
    OptimizerSettings,
    PgtSettings,
    Recipe,
    ReparamSettings,
    ScheduleSettings,
)
from backpass.training.stream import StreamAugmentation

__all__ = ["PGT_IMAGENET"]

# Batch 256 on each of 4 GPUs, SGD 0.1, decay 5e-4, 5 warm-up epochs, 90 epochs and, after the cosine alone, 10 of
# cool-down. The schedules' ends (1e-4; a tenth every 30 epochs), Nesterov momentum, no decay of 1-D parameters and the
# augmentation (crop and flip) are the defaults of the published code. Its ResNets do not start the last normalisation
# of a block at zero, as timm's do by default. Ours are a warm-up from near 0, there from 0.01, and evaluation on images
# resized bilinearly, there bicubically for all ResNets but ResNet-18. The gamma of acb is that of its authors on
# ImageNet.
PGT_IMAGENET = Recipe(
    model="timm/resnet18",
    model_args=(("zero_init_last", False),),
    data=DataSettings(name="imagenet"),
    epochs=100,
    batch_size=1024,
    optimizer=OptimizerSettings(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norm_and_bias=False),
    schedule=ScheduleSettings(final_lr=1e-4, warmup_epochs=5, cooldown_epochs=10, step_epochs=30, step_factor=0.1),
    stream_augmentation=StreamAugmentation(color_jitter=0.0),
    pgt=PgtSettings(alpha=0.25),
    reparam=ReparamSettings(acb_gamma=1.0),
)
