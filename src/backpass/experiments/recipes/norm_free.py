"""The recipe of NF-ResNets on ImageNet under adaptive gradient clipping."""

from dataclasses import replace

from backpass.experiments.recipes.pgt import PGT_IMAGENET
from backpass.training.recipe import OptimizerSettings, PgtSettings, ScheduleSettings

__all__ = ["NF_IMAGENET"]

# The NFNet code's optimizer: SGD with Nesterov momentum, 0.1 for every 256 images, decay 2e-5 on kernels and matrices
# alone, 5 warm-up epochs, cosine to 0. Length, batch and augmentation are ours: those of the PGT runs, without a
# cool-down, since the cosine ends at 0.
NF_IMAGENET = replace(
    PGT_IMAGENET,
    model="nf_resnet50",
    model_args=(),
    epochs=90,
    optimizer=OptimizerSettings(
        lr=0.1 * PGT_IMAGENET.batch_size / 256,
        momentum=0.9,
        nesterov=True,
        weight_decay=2e-5,
        decay_norm_and_bias=False,
    ),
    schedule=ScheduleSettings(final_lr=0.0, warmup_epochs=5),
    pgt=PgtSettings(alpha=0.3),
)
