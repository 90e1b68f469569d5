import pytest
import torch
from accelerate import Accelerator
from torch import nn

from backpass.training.wrapping import WrappedModel


class Logits(dict):
    """A mapping whose keys are attributes too."""

    def __getattr__(self, name):
        return self[name]


def of_hugging_face(logits):
    outputs = pytest.importorskip("transformers.modeling_outputs")
    return outputs.ImageClassifierOutput(logits=logits)


@pytest.mark.parametrize("make", [lambda logits: Logits(logits=logits), of_hugging_face])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_mapping_that_a_model_returns_keeps_its_type(make, precision):
    class Model(nn.Linear):
        def forward(self, x):
            self.returned = make(super().forward(x))
            return self.returned

    model = Model(3, 2)
    wrapped = WrappedModel(model, Accelerator(cpu=True, mixed_precision=precision))
    output = wrapped(torch.ones(4, 3))
    assert type(output) is type(model.returned)
    assert output.logits is output["logits"]
    assert output.logits.dtype == torch.float32
    assert model.returned.logits.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
