"""Recipes of fine-tuning for segmentation and pose (SGS Tables 7 and 8).

The SGS paper names its two sources, hszhao/semseg and xingyizhou/pytorch-pose-hg-3d, and no settings of its own. The
settings of SGS are ours: those of ImageNet, the nearest published ones.
"""

from backpass.experiments.recipes.sgs import IMAGENET_120
from backpass.training.recipe import (
    DataSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    SgsSettings,
    WeightSettings,
)

__all__ = ["CITYSCAPES_200", "MPII_140"]

# config/cityscapes/cityscapes_pspnet50.yaml and tool/train.py of semseg: 200 epochs, batch 16, SGD 0.01 for the
# backbone and 0.1 for all heads, momentum 0.9, decay 1e-4 of every parameter, poly 0.9, synchronised statistics. The
# task's defaults are its crops, augmentation, losses and windows.
CITYSCAPES_200 = Recipe(
    task="segmentation",
    model="pspnet18",
    weights=WeightSettings(module="backbone"),
    data=DataSettings(name="cityscapes"),
    epochs=200,
    batch_size=16,
    optimizer=OptimizerSettings(
        lr=0.01,
        lr_factors=(("pyramid.*", 10.0), ("head.*", 10.0), ("auxiliary.*", 10.0)),
        momentum=0.9,
        weight_decay=1e-4,
    ),
    schedule=ScheduleSettings(name="poly", poly_power=0.9),
    sync_batch_norm=True,
    sgs=IMAGENET_120.sgs,
)

# src/lib/opts.py and src/main.py of pose-hg-3d: 140 epochs, batch 32, Adam 1e-3 without decay, a tenth after epochs 90
# and 120. The task's defaults are its crops, channels, targets and evaluation. Adam divides a fixed factor on a
# gradient out again, so SGS scales the update, as in the paper's Adagrad*.
MPII_140 = Recipe(
    task="keypoints",
    model="pose_resnet18",
    weights=WeightSettings(module="backbone"),
    data=DataSettings(name="mpii"),
    epochs=140,
    batch_size=32,
    optimizer=OptimizerSettings(name="adam", lr=1e-3, weight_decay=0.0),
    schedule=ScheduleSettings(name="step", milestones=(90.0, 120.0), step_factor=0.1),
    sgs=SgsSettings(k=5.0, every=5, batches=2, drop_near_equal=True, apply="update"),
)
