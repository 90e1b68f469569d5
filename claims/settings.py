"""The recipes that claims share."""

from dataclasses import replace

from backpass.experiments import get_recipe
from backpass.training.recipe import DataSettings, Recipe

__all__ = ["HUNDRED_CLASSES", "TEN_CLASSES", "on_cpu"]

HUNDRED_CLASSES = DataSettings(
    name="folder:data/tiny-imagenet-100-32", label="Tiny-ImageNet, 100 classes at 32x32", limit_train=12_500
)
TEN_CLASSES = DataSettings(name="folder:data/cifar10-jpeg", label="CIFAR-10 (JPEG)", limit_train=12_500)


def on_cpu(data: DataSettings, model: str = "vgg11_narrow") -> Recipe:
    """Return the recipe ``cpu-30`` with this model and these images."""
    return replace(get_recipe("cpu-30"), model=model, data=data)
