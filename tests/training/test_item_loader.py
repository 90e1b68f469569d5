"""Examples that worker processes make: what chance decides in them follows from seed, epoch and position."""

import random

import numpy
import pytest
import torch

from backpass.errors import InputError
from backpass.training.datasets import load_dataset
from backpass.training.items import ItemData
from backpass.training.loaders import measuring_batches
from training.loading import loaders_of
from training.own import noisy

SOURCES = ("numpy", "random")


def first_of(loader, epoch):
    return next(loader.iter_epoch(epoch))[0]


def loader_of(source, workers=0):
    return loaders_of(noisy(source), batch_size=8, workers=workers).train


@pytest.mark.parametrize("source", SOURCES)
def test_items_that_draw_from_numpy_or_python_do_not_depend_on_workers(source):
    batches = [list(loader_of(source, workers).iter_epoch(0)) for workers in (0, 1, 2)]
    assert len(batches[0]) == 2
    for other in batches[1:]:
        torch.testing.assert_close(other, batches[0], rtol=0, atol=0)


@pytest.mark.parametrize("source", SOURCES)
def test_a_later_epoch_has_the_same_items_without_the_one_before(source):
    whole = loader_of(source)
    first = first_of(whole, 0)
    assert first.unique().numel() == 8, "each item draws its own"
    later = first_of(whole, 1)
    assert torch.equal(later, first_of(loader_of(source), 1))
    assert not torch.equal(later.sum(), first.sum())


@pytest.mark.parametrize("source", SOURCES)
def test_measuring_changes_no_item_that_draws_from_numpy_or_python(source):
    plain, measured = loader_of(source), loader_of(source)
    measuring_batches(measured, 1, epoch=0)
    assert torch.equal(first_of(plain, 0), first_of(measured, 0))


def test_the_generators_of_the_process_go_on_as_if_nothing_was_read():
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    expected = random.random(), numpy.random.random(), torch.rand(1)
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    list(loader_of("numpy"))
    assert (random.random(), numpy.random.random(), torch.rand(1)) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_an_example_is_the_same_from_a_worker_process(workers, pets):
    file = pets / "train" / "eagle" / "002.png"
    data = load_dataset(f"folder:{pets}", image_size=4)
    file.write_bytes(b"damaged")
    loader = loaders_of(data, batch_size=12, workers=workers).train
    for _ in range(2):  # the workers live on
        with pytest.raises(InputError) as caught:
            list(loader.iter_epoch(0))
        text = str(caught.value)
        assert text.startswith(f"expected {file} to be a readable image, got ")
        assert "\n" not in text
        assert text.endswith("replace or remove the file")


@pytest.mark.parametrize("workers", [0, 1])
def test_examples_of_different_sizes_are_refused(workers):
    split = [(torch.zeros(1, side, 3), torch.tensor(0)) for side in (3, 3, 4)]
    data = ItemData("uneven", split, split, num_classes=2, input_size=(1, 3, 3))
    text = r"one form and size in a batch, got tuple of tensor of shape \(1, 3, 3\), .* and tuple of .* \(1, 4, 3\), "
    with pytest.raises(InputError, match=text):
        list(loaders_of(data, batch_size=3, workers=workers).test)


def test_examples_with_different_keys_are_refused():
    split = [({key: torch.zeros(1, 3, 3)}, torch.tensor(0)) for key in ("x", "y")]
    data = ItemData("uneven", split, split, num_classes=2, input_size=(1, 3, 3))
    with pytest.raises(InputError, match=r"one form and size in a batch, got .*x.* and .*y"):
        list(loaders_of(data, batch_size=2).test)
