import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from backpass.training.classification import Classification


def test_accuracy_over_unequal_batches_is_a_fraction_in_float64():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(n, 7, generator=generator), torch.randint(0, 7, (n,), generator=generator)) for n in (31, 7, 100)
    ]
    evaluation = Classification().evaluation(torch.device("cpu"))
    for output, target in batches:
        evaluation.update(output, target)
    output, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = evaluation.compute(lambda sums: sums)["accuracy"]
    assert found == int((output.argmax(1) == target).sum()) / 138
    assert found == pytest.approx(multiclass_accuracy(output, target, num_classes=7, average="micro").item())
    # Over two processes that see the same, sums double and means stay.
    assert evaluation.compute(lambda sums: 2 * sums)["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(output, target).item()
    )
