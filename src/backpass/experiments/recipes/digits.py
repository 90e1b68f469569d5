"""The embedded job: a small net on scikit-learn's 8x8 digits, a few seconds a run on two CPU cores."""

from backpass.training.augment import Augmentation
from backpass.training.recipe import DataSettings, OptimizerSettings, PgtSettings, Recipe, SgsSettings

__all__ = ["DIGITS"]

# No source: chosen so that the job is short, and 300 images so that its accuracy is not saturated. Methods keep their
# papers' defaults: k = 5, a refresh every 5 epochs, alpha = 0.3.
DIGITS = Recipe(
    model="digits_net",
    data=DataSettings(name="digits", limit_train=300),
    epochs=20,
    batch_size=32,
    optimizer=OptimizerSettings(lr=0.05, momentum=0.9, weight_decay=5e-4),
    augmentation=Augmentation(crop_padding=1, flip=False, cutout=0),
    sgs=SgsSettings(every=5, batches=4),
    pgt=PgtSettings(alpha=0.3),
)
