"""Train better convnets by altering only the backward pass.

Spatial Gradient Scaling and the PowerGrad Transform for any PyTorch training loop, and the peers they are judged
against. The trained network is the plain one: same architecture, same ``state_dict``, same inference cost.
"""

from backpass import sgs
from backpass.errors import BackpassError, BackpassWarning
from backpass.sgs import SpatialGradientScaling

__version__ = "0.1.0.dev0"

__all__ = [
    "BackpassError",
    "BackpassWarning",
    "SpatialGradientScaling",
    "__version__",
    "sgs",
]
