import pytest
import torch

from backpass.errors import InputError
from backpass.reparam.conversion.probe import call
from reference.reparam_cases import Wired


def test_probes_are_tensors_or_arguments() -> None:
    add = Wired(lambda s, x: x + 1)
    one = torch.ones(1)
    assert call(add, one).item() == call(add, [one]).item() == call(add, {"x": one}).item() == 2.0
    with pytest.raises(InputError, match=r"a tensor, a sequence or a mapping of arguments, got int"):
        call(add, 3)
