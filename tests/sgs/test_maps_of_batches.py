"""The maps of batches of a model whose parts are on different devices."""

import torch
from torch import Tensor, nn

from backpass.sgs.feature_maps import FeatureMap
from backpass.sgs.layers import scalable_convs
from backpass.sgs.maps_of_batches import MapsOfBatches


def test_the_input_goes_to_the_first_parameter_and_not_to_the_first_measured_kernel() -> None:
    inputs: list[Tensor] = []

    class Split(nn.Module):
        """On two devices, and moves its activations by hand; ``meta`` stands for a second GPU."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 2, 3)
            self.second = nn.Conv2d(2, 1, 3, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            inputs.append(x)
            return self.second(self.first(x).to("meta"))

    model = Split()
    maps: list[FeatureMap] = []
    MapsOfBatches(model, [torch.zeros(1, 1, 6, 6)], scalable_convs(model, ["second"])).for_each(maps.append)
    assert [x.device.type for x in inputs] == ["cpu"]
    assert [feature_map.values.device.type for feature_map in maps] == ["meta"]
