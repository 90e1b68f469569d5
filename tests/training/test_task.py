import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from backpass.training.classification import Classification


def test_accuracy_over_unequal_batches_is_that_of_torchmetrics_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(n, 7, generator=generator), torch.randint(0, 7, (n,), generator=generator)) for n in (31, 7, 100)
    ]
    evaluation = Classification().evaluation(torch.device("cpu"))
    for output, target in batches:
        evaluation.update(output, target)
    output, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = multiclass_accuracy(output, target, num_classes=7, average="micro").item()
    assert evaluation.compute(lambda sums: sums)["accuracy"] == expected
    # Over two processes that see the same, sums double and means stay.
    assert evaluation.compute(lambda sums: 2 * sums)["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(output, target).item()
    )
