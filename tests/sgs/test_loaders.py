"""``update`` reads loaders of any kind, no more than it needs, and without a trace in what the caller reads next."""

import random
from collections import UserDict
from collections.abc import Iterator
from multiprocessing import active_children
from typing import Any

import pytest

pytest.importorskip("numpy")
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler, Sampler, Subset, TensorDataset

from backpass.errors import InputError
from backpass.sgs import SpatialGradientScaling, scalable_convs


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3))


class Augmented(Dataset[Tensor]):
    """Draws from every random state that augmentations draw from, and counts what is read."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Tensor:
        self.read += 1
        return torch.randn(1, 6, 6) + random.random() + np.random.rand() + index


def scalings(loader: Any, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    sgs = SpatialGradientScaling(net())
    sgs.update(loader, **options)
    return sgs.scalings


def test_no_more_is_read_than_needed() -> None:
    dataset = Augmented()
    scalings(DataLoader(dataset, batch_size=4), batches=2)
    assert dataset.read == 8


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("workers", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_training_reads_the_same_batches_with_and_without_an_update(
    own_generator: bool, workers: dict[str, Any]
) -> None:
    def epoch(update: bool) -> list[Tensor]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = net()
        generator = torch.Generator().manual_seed(1) if own_generator else None
        loader = DataLoader(Augmented(), batch_size=4, shuffle=True, generator=generator, **workers)
        if update:
            SpatialGradientScaling(model).update(loader, batches=2)
        return [x for _, x in zip(range(3), loader, strict=False)]

    for plain, measured in zip(epoch(False), epoch(True), strict=True):
        assert torch.equal(plain, measured)


def prepared_by(framework: str, loader: Any) -> Any:
    if framework == "accelerate":
        return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(loader)
    if framework == "fabric":
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
        return fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    return loader


@pytest.mark.parametrize("framework", ["torch", "accelerate", "fabric"])
def test_an_update_while_persistent_workers_are_read(framework: str) -> None:
    def epochs(update: bool) -> list[Tensor]:
        torch.manual_seed(0)
        sgs = SpatialGradientScaling(net())
        loader = prepared_by(framework, DataLoader(Augmented(), batch_size=8, num_workers=1, persistent_workers=True))
        batches, workers = iter(loader), 0
        read = [next(batches)]
        if update:
            workers = len(active_children())
            sgs.update(loader, batches=2)
            assert len(active_children()) == workers
        return [*read, *batches, *loader]

    plain, measured = epochs(False), epochs(True)
    assert len(plain) == len(measured) == 8
    assert all(map(torch.equal, plain, measured))


def test_an_update_on_all_batches_while_a_dispatched_loader_is_read() -> None:
    accelerate = pytest.importorskip("accelerate")
    configuration = accelerate.DataLoaderConfiguration(dispatch_batches=True)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
    loader = accelerator.prepare(DataLoader(torch.randn(12, 1, 6, 6), batch_size=4))
    batches = iter(loader)
    next(batches)
    scalings(loader, batches=3)
    assert len(list(batches)) == 2


def test_a_loader_is_measured_like_its_first_batches() -> None:
    x = torch.randn(12, 1, 6, 6)
    loader = DataLoader(TensorDataset(x, torch.zeros(12)), batch_size=4)
    expected = scalings([x[:4], x[4:8]])
    for measured in (scalings(loader, batches=2), scalings(list(loader), batches=2)):
        assert all(torch.equal(measured[name], g) for name, g in expected.items())
    assert not torch.equal(scalings(loader)["0.weight"], expected["0.weight"])


def test_an_accelerate_loader_is_left_as_if_it_had_not_been_read() -> None:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = accelerator.prepare(DataLoader(torch.randn(8, 1, 6, 6), batch_size=2))
    scalings(loader, batches=1)
    assert not accelerator.gradient_state.in_dataloader


@pytest.mark.parametrize("batches", [1, None])
def test_an_accelerate_loader_with_seeded_epochs_is_left_at_its_epoch(batches: int | None) -> None:
    accelerate = pytest.importorskip("accelerate")

    def epochs(update: bool) -> list[list[list[int]]]:
        accelerator = accelerate.Accelerator(
            cpu=True, dataloader_config=accelerate.DataLoaderConfiguration(use_seedable_sampler=True)
        )
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(16, 1, 6, 6), torch.arange(16))
        loader = accelerator.prepare(DataLoader(data, batch_size=4, shuffle=True))
        order = []
        for _ in range(2):
            if update:
                scalings(loader, batches=batches)
            order.append([labels.tolist() for _, labels in loader])
        return order

    plain = epochs(False)
    assert plain[0] != plain[1]
    assert epochs(True) == plain


def test_a_loader_of_fabric_is_left_at_its_epoch() -> None:
    def epochs(update: bool) -> list[list[list[int]]]:
        data = TensorDataset(torch.randn(16, 1, 6, 6), torch.arange(16))
        sampler = DistributedSampler(data, num_replicas=2, rank=0)
        loader = prepared_by("fabric", DataLoader(data, batch_size=4, sampler=sampler))
        order = []
        for _ in range(2):
            if update:
                scalings(loader, batches=1)
            order.append([labels.tolist() for _, labels in loader])
        return order

    plain = epochs(False)
    assert plain[0] != plain[1]
    assert epochs(True) == plain


class EpochSampler(Sampler[int]):
    """Counts the epochs that are begun, and seeds each with its number."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(torch.randperm(16, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return 16


def test_a_sampler_that_counts_its_epochs_is_left_at_its_epoch() -> None:
    sampler = EpochSampler()
    loader = DataLoader(torch.randn(16, 1, 6, 6), batch_size=4, sampler=sampler)
    scalings(loader, batches=2)
    assert sampler.epoch == 0


def test_the_generator_of_a_loader_inside_another_is_left_as_it_was() -> None:
    class Prefetcher:
        def __init__(self, loader: DataLoader[Tensor]) -> None:
            self.loader = loader

        def __iter__(self) -> Iterator[Tensor]:
            yield from self.loader

    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    scalings(Prefetcher(DataLoader(torch.randn(4, 1, 6, 6), generator=generator)))
    assert torch.equal(generator.get_state(), before)


class OwnGenerators(Dataset[Tensor]):
    """Draws from generators that it keeps under names of its own."""

    def __init__(self) -> None:
        self.numbers, self.old = np.random.default_rng(0), np.random.RandomState(0)
        self.coin, self.torch_generator = random.Random(0), torch.Generator().manual_seed(0)
        self.stateless, self.dataset = random.SystemRandom(), self

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        drawn = self.numbers.random() + self.old.rand() + self.coin.random()
        return torch.randn(1, 6, 6, generator=self.torch_generator) + drawn


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(8)), lambda d: ConcatDataset([d, d])])
def test_the_generators_of_a_data_set_are_left_as_they_were(wrap: Any) -> None:
    plain, measured = (DataLoader(wrap(OwnGenerators()), batch_size=4) for _ in range(2))
    SpatialGradientScaling(net()).update(measured, batches=2)
    assert torch.equal(next(iter(plain)), next(iter(measured)))


def test_a_loader_with_an_end_of_its_own_is_not_ended() -> None:
    class Batches(list[Tensor]):
        def end(self) -> None:
            raise AssertionError("this may close a file")

    scalings(Batches([torch.randn(4, 1, 6, 6)]), batches=1)


def test_mappings_by_the_name_of_the_input() -> None:
    x = torch.randn(4, 1, 6, 6)
    for batch in ({"pixel_values": x, "labels": 0}, UserDict(pixel_values=x)):
        measured = scalings([batch], forward="pixel_values")
        assert torch.equal(measured["0.weight"], scalings([x])["0.weight"])
    with pytest.raises(InputError, match=r"got dict with keys 'image'; .*or the name of the input in a mapping"):
        scalings([{"image": x}])
    with pytest.raises(
        InputError, match="expected a batch to be a mapping with a tensor 'pixel_values', got dict with"
    ):
        scalings([{"image": x}], forward="pixel_values")


def test_an_epoch_starts_with_one_line() -> None:
    sgs = SpatialGradientScaling(net(), warmup=1, every=2)
    loader = DataLoader(Augmented(), batch_size=4)
    assert [sgs.start_epoch(epoch, loader) for epoch in range(5)] == [False, True, True, False, True]
    assert not torch.equal(sgs.scalings["0.weight"], torch.ones(3, 3))
    resumed = SpatialGradientScaling(net(), warmup=1, every=2)
    resumed.load_state_dict(sgs.state_dict())
    assert [resumed.start_epoch(epoch, loader) for epoch in (4, 5, 6)] == [False, False, True]


def test_a_training_of_one_epoch_measures_without_a_warmup() -> None:
    loader = DataLoader(Augmented(), batch_size=4)
    assert SpatialGradientScaling(net(), warmup=0).start_epoch(0, loader)
    assert not SpatialGradientScaling(net()).start_epoch(0, loader)


def test_a_second_training_measures_like_the_first() -> None:
    loader = DataLoader(Augmented(), batch_size=4)
    sgs = SpatialGradientScaling(net(), warmup=1, every=2)
    first = [sgs.start_epoch(epoch, loader) for epoch in (0, 1)]
    assert first == [sgs.start_epoch(epoch, loader) for epoch in (0, 1)] == [False, True]
    assert not sgs.start_epoch(1, loader)

    sgs.set_model(net())  # the same kernels, whose scalings are kept
    assert [sgs.start_epoch(epoch, loader) for epoch in (0, 1)] == [False, True]

    sgs.set_model(nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 5)))
    assert all(bool((scaling == 1).all()) for scaling in sgs.scalings.values())
    assert [sgs.start_epoch(epoch, loader) for epoch in (2, 3)] == [True, False]
    assert not any(bool((scaling == 1).all()) for scaling in sgs.scalings.values())


def test_a_fixed_scaling_stays_fixed_in_another_model() -> None:
    sgs = SpatialGradientScaling(net(), scaling=torch.full((3, 3), 2.0))
    sgs.set_model(nn.Sequential(nn.Conv2d(1, 4, 3)))
    assert not any(sgs.due(epoch) for epoch in range(20))


def nothing() -> Iterator[Tensor]:
    yield from ()


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        (torch.zeros(4, 1, 6, 6), {}, r"got one tensor of shape \(4, 1, 6, 6\); pass \[batch\]"),
        ([torch.zeros(4, 1, 6, 6)], {"batches": 0}, "expected batches to be an integer >= 1 .* got 0"),
        (nothing(), {"batches": 2}, "at least one measuring batch, got none"),
    ],
)
def test_loaders_without_batches(loader: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scalings(loader, **options)


# Kernels without a centre


def test_kernels_that_cut_the_input_into_patches_are_left_out_by_default() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 4, 3, stride=3), nn.Conv2d(4, 4, 2), nn.Conv2d(4, 4, (1, 2), (1, 2))
    )
    assert list(scalable_convs(model)) == ["1.weight", "2.weight"]
    assert len(scalable_convs(model, ["*"])) == len(scalable_convs(model, lambda name, conv: True)) == 4
    with pytest.raises(InputError, match=r"stem cut their input into patches, include=\['\*'\] selects them"):
        scalable_convs(nn.ModuleDict({"stem": nn.Conv2d(3, 4, 4, stride=4)}))
