import numpy
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from backpass.errors import InputError
from backpass.training.classification import Classification
from backpass.training.items import ItemData
from backpass.training.recipe import Recipe
from backpass.training.tasks import build_task


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


def items(target, num_classes=3):
    return ItemData("own", [(torch.zeros(1, 8, 8), target)] * 16, [(torch.zeros(1, 8, 8), 0)], num_classes, (1, 8, 8))


@pytest.mark.parametrize(
    "target", [3, -1, 1.0, torch.tensor(3), torch.tensor([1]), torch.tensor([1.0, 0.0, 0.0]), "cat"]
)
def test_a_target_that_is_no_class_is_refused(target):
    data = items(target)
    task = build_task(Recipe(model="digits_net"), data)
    with pytest.raises(InputError, match="expected the class of each item as an integer from 0 to 2, got"):
        task.prepare(data.train[0], training=True)


@pytest.mark.parametrize("target", [2, torch.tensor(0), numpy.int32(1)])
def test_a_class_is_taken_in_any_form_of_an_integer(target):
    data = items(target)
    assert build_task(Recipe(model="digits_net"), data).prepare(data.train[0], training=True) is data.train[0]


def test_classification_needs_two_classes_and_a_smoothing_in_range():
    with pytest.raises(InputError, match="expected at least 2 classes in own, got 1; add the images"):
        build_task(Recipe(model="digits_net"), items(0, num_classes=1))
    with pytest.raises(InputError, match="expected label_smoothing to be a finite number >= 0 and <= 1, got 2"):
        build_task(Recipe(model="digits_net", task_args=(("label_smoothing", 2),)), items(0))
