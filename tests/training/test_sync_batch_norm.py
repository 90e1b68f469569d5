import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.training.sync_batch_norm import synchronise_batch_norm


class Own(nn.BatchNorm2d):
    """One that may do more."""


def test_normalisations_become_synchronised_and_keep_their_parameters():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    weight = model[1].weight
    converted = synchronise_batch_norm(model)
    assert type(converted[1]) is nn.SyncBatchNorm
    assert converted[1].weight is weight


def test_the_activation_of_a_normalisation_of_timm_is_kept():
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), layers.BatchNormAct2d(2), nn.BatchNorm2d(2)).eval()
    x = torch.randn(4, 1, 8, 8)
    expected = model(x)
    converted = synchronise_batch_norm(model)
    assert [type(module) for module in converted[1:]] == [layers.SyncBatchNormAct, nn.SyncBatchNorm]
    torch.testing.assert_close(converted(x), expected)


def test_another_normalisation_is_refused():
    with pytest.raises(InputError, match=r"got Own at '1', which may do more; switch sync_batch_norm off"):
        synchronise_batch_norm(nn.Sequential(nn.Conv2d(1, 2, 3), Own(2)))
