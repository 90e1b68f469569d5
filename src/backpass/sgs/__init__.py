"""Spatial Gradient Scaling (SGS): scale each kernel's gradient, tap by tap, by what neighbouring pixels share.

Data flows one way, a module a stage: batches (``maps_of_batches``) -> feature maps (``layers``, ``feature_maps``) ->
joint histograms (``histogram``) -> dependence S (``dependence``, ``near_equal``) -> scaling G (``scaling``) ->
gradients (``gradients``) or updates (``updates``, ``optimizers``). ``measuring`` is the way from batches to scalings,
``controller`` decides when, ``applying`` how, ``misuse`` notices loops that leave kernels plain, ``given_scalings``
checks fixed and saved ones, ``distributed`` serves several processes, ``functional`` has the stages as functions, and
``fast_counting`` and ``kept_maps`` are there for speed.
"""

from backpass.sgs.controller import SpatialGradientScaling
from backpass.sgs.functional import autocorrelation, mutual_information
from backpass.sgs.layers import scalable_convs
from backpass.sgs.measuring import measure_scalings
from backpass.sgs.scaling import (
    alpha_beta_scaling,
    k_transform,
    normalize,
    scaling_from_branches,
    scaling_from_dependence,
)

__all__ = [
    "SpatialGradientScaling",
    "alpha_beta_scaling",
    "autocorrelation",
    "k_transform",
    "measure_scalings",
    "mutual_information",
    "normalize",
    "scalable_convs",
    "scaling_from_branches",
    "scaling_from_dependence",
]
