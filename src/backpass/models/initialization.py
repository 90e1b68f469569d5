"""Initialisations that several families share; everything else keeps PyTorch's defaults."""

from torch import nn

__all__ = ["init_convs_fan_out_"]


def init_convs_fan_out_(model: nn.Module) -> None:
    """Draw the weight of every ``nn.Conv2d`` of ``model`` from N(0, 2 / (k_h * k_w * C_out)), in place.

    This is He's normal initialisation in its "fan out" form with the ReLU gain; biases are left alone.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
