"""Models by name, and what they cost: those of the SGS paper, and norm-free ResNets for ImageNet.

>>> from backpass.models import count_parameters, create_model
>>> count_parameters(create_model("resnet18", num_classes=100))
11220132
"""

from backpass.models import (
    cifar_resnet,
    mobilenetv2,
    nf_resnet,
    nonorm_resnet,
    pose_resnet,
    preact_resnet,
    pspnet,
    pyramidnet,
    resnet,
    se_resnet,
    shufflenet,
    small,
    vgg,
    xception,
)
from backpass.models.cost import count_macs, count_parameters
from backpass.models.registry import create_model, list_models, register_model

__all__ = [
    "cifar_resnet",
    "count_macs",
    "count_parameters",
    "create_model",
    "list_models",
    "mobilenetv2",
    "nf_resnet",
    "nonorm_resnet",
    "pose_resnet",
    "preact_resnet",
    "pspnet",
    "pyramidnet",
    "register_model",
    "resnet",
    "se_resnet",
    "shufflenet",
    "small",
    "vgg",
    "xception",
]
