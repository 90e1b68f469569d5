"""Small, real settings for comparisons on a CPU: some minutes a run on one core."""

from dataclasses import replace

from backpass.experiments.recipes.sgs import CIFAR_200

__all__ = ["CPU_30"]

# The settings of SGS's CIFAR runs (appendix A.1), with a narrow VGG, 12,500 training images and 30 epochs, which are
# ours. A folder of 32x32 images stands in for CIFAR: --data.name folder:PATH.
CPU_30 = replace(CIFAR_200, model="vgg11_narrow", data=replace(CIFAR_200.data, limit_train=12_500), epochs=30)
