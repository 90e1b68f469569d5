"""The data sets by name: what is read from tiny sets in the published layouts, how it is divided, and every refusal."""

import hashlib
import io
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backpass.errors import InputError, MissingExtraError
from backpass.training.datasets import CIFAR_MEAN, list_datasets, load_dataset
from backpass.training.images import FileSplit, ImageData, ImageSplit, stratified_subset

torchvision_cifar = pytest.importorskip("torchvision.datasets.cifar")


class OldNumpyPickler(pickle.Pickler):
    """Writes arrays as Python 2 with its NumPy wrote those of the published batches."""

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[np.ndarray, list[int]]:
    """Write a tiny CIFAR set in the published format, teach torchvision its sums, and return all training images."""
    reader = {"cifar10": torchvision_cifar.CIFAR10, "cifar100": torchvision_cifar.CIFAR100}[name]
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    key, classes = ("labels", 10) if name == "cifar10" else ("fine_labels", 100)
    rng = np.random.default_rng(0)

    def write(file: str, content: object) -> list[str]:
        stream = io.BytesIO()
        OldNumpyPickler(stream, protocol=2).dump(content)
        (folder / file).write_bytes(stream.getvalue())
        return [file, hashlib.md5(stream.getvalue()).hexdigest()]

    def write_batch(file: str) -> tuple[list[str], np.ndarray, list[int]]:
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, 4).tolist()
        return write(file, {"data": data, key: labels}), data, labels

    train = [write_batch(file) for file, _ in reader.train_list]
    monkeypatch.setattr(reader, "train_list", [sums for sums, _, _ in train])
    monkeypatch.setattr(reader, "test_list", [write_batch(file)[0] for file, _ in reader.test_list])
    names = [f"class {i}" for i in range(classes)]
    meta = write(reader.meta["filename"], {reader.meta["key"]: names})
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": meta[1]})
    return np.concatenate([data for _, data, _ in train]), [y for _, _, labels in train for y in labels]


# Digits


def test_digits_are_scikit_learns_on_the_scale_of_sixteen() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = load_dataset("digits")
    assert isinstance(data.train, ImageSplit)
    assert isinstance(data.test, ImageSplit)
    found = torch.cat(
        [torch.cat([part.images.flatten(1), part.labels[:, None]], 1) for part in (data.train, data.test)]
    )
    expected = torch.from_numpy(np.column_stack([bunch.data, bunch.target])).to(found.dtype)
    assert sorted(found.tolist()) == sorted(expected.tolist())
    assert (len(data.train), len(data.test), data.max_value) == (1438, 359, 16.0)
    assert (data.label, data.num_classes, data.channels, data.image_size) == ("digits (scikit-learn)", 10, 1, (8, 8))

    values = data.train.images.double() / 16
    assert data.mean[0] == pytest.approx(values.mean().item(), abs=1e-12)
    assert data.std[0] == pytest.approx(values.std(correction=0).item(), abs=1e-12)


def test_the_split_of_the_digits_is_stratified_and_does_not_follow_the_seed() -> None:
    one, two = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    assert isinstance(one.test, ImageSplit)
    assert isinstance(two.test, ImageSplit)
    assert torch.equal(one.test.images, two.test.images)
    everything = one.train.labels.bincount() + one.test.labels.bincount()
    assert ((one.test.labels.bincount() - 0.2 * everything).abs() < 1).all()


# Subsets


def test_stratified_subset_by_hand() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3] * 1)
    chosen = stratified_subset(labels, 5, torch.Generator().manual_seed(0))
    # Shares 3, 1.5 and 0.5: one of the two halves is rounded up.
    assert labels[chosen].bincount(minlength=4).tolist() in ([3, 2, 0, 0], [3, 1, 0, 1])
    assert chosen.tolist() == sorted(set(chosen.tolist()))


@pytest.mark.parametrize("count", [0, 1, 7, 50, 99, 100])
def test_stratified_subset_keeps_the_shares_within_one(count: int) -> None:
    labels = torch.randint(7, (100,), generator=torch.Generator().manual_seed(0))
    chosen = stratified_subset(labels, count, torch.Generator().manual_seed(1))
    assert len(set(chosen.tolist())) == len(chosen) == count
    shares = labels.bincount(minlength=7) * count / 100
    assert ((labels[chosen].bincount(minlength=7) - shares).abs() < 1).all()


def test_stratified_subset_takes_every_item_and_every_tie_alike() -> None:
    labels = torch.arange(10) // 2
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(10)
    for _ in range(1000):
        hits[stratified_subset(labels, 2, generator)] += 1
    assert ((hits - 200).abs() < 60).all()  # more than 4 standard deviations of 12.6


def test_limits_and_validation_draw_stratified_by_the_seed() -> None:
    def images(split: object) -> Tensor:
        assert isinstance(split, ImageSplit)
        return split.images

    data = load_dataset("digits", split_validation=0.1, limit_train=200, limit_test=50, seed=3)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (200, 144, 50)
    assert data.train.labels.bincount().tolist() == pytest.approx([20] * 10, abs=1)

    again = load_dataset("digits", split_validation=0.1, limit_train=200, limit_test=50, seed=3)
    other = load_dataset("digits", split_validation=0.1, limit_train=200, limit_test=50, seed=4)
    assert torch.equal(images(data.train), images(again.train))
    assert not torch.equal(images(data.train), images(other.train))

    unlimited = load_dataset("digits", split_validation=0.1, seed=3)
    training = {tuple(x) for x in images(unlimited.train).flatten(1).tolist()}
    held_out = {tuple(x) for x in images(unlimited.validation).flatten(1).tolist()}
    assert len(unlimited.train) + len(held_out) == 1438
    assert not training & held_out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit_train": 0}, "limit_train must be from 1 to the 1438 images of the split, got 0"),
        ({"limit_train": 1439}, "limit_train must be from 1 to the 1438 images of the split, got 1439"),
        ({"limit_test": 360}, "limit_test must be from 1 to the 359 images of the split, got 360"),
        ({"split_validation": 1.0}, "expected 0 <= split_validation < 1, .*got 1.0"),
        ({"split_validation": 1e-4}, "of 1438 training images leaves 0 to validate on and 1438 to train on"),
        ({"image_size": 16}, "image_size is for folders and at least 1, got 16 with 'digits'"),
        ({"mean": [0.5]}, r"mean and std go together, got mean=\[0.5\] and std=None"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset("digits", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mnist", "Digits", "digits:somewhere", ""])
def test_unknown_names_are_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in list_datasets())


# CIFAR


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_the_published_batches(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, labels = write_cifar(tmp_path, monkeypatch, name)
    data = load_dataset(name, root=tmp_path)
    assert isinstance(data.train, ImageSplit)
    assert torch.equal(data.train.images.flatten(1), torch.from_numpy(stored))
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == labels
    assert data.label == {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]
    assert data.num_classes == int(name[5:])
    assert data.class_names[1] == "class 1"
    assert data.mean == CIFAR_MEAN


def test_the_age_of_the_published_batches_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10")
    load_pickle = pickle.load

    def protest(*args: object, **kwargs: object) -> object:
        warnings.warn("align should be boolean", np.exceptions.VisibleDeprecationWarning, stacklevel=2)
        return load_pickle(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torchvision_cifar.pickle, "load", protest)
    assert len(load_dataset("cifar10", root=tmp_path).train) == 20
    with pytest.warns(np.exceptions.VisibleDeprecationWarning):
        torchvision_cifar.CIFAR10(str(tmp_path))


def test_missing_cifar_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("cifar10", root=tmp_path)
    assert f"looked for in {tmp_path / 'cifar-10-batches-py'}, but it does not exist" in str(caught.value)
    assert "download=True" in str(caught.value)


def test_damaged_cifar_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(InputError, match="a file in it is missing or not as published"):
        load_dataset("cifar10", root=tmp_path)


def test_download_is_passed_on_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", lambda url, *_, **__: asked.append(url))
    with pytest.raises(InputError):
        load_dataset("cifar100", root=tmp_path)
    assert asked == []
    with pytest.raises(InputError):
        load_dataset("cifar100", root=tmp_path, download=True)
    assert asked == [torchvision_cifar.CIFAR100.url]


# The records


def split(count: int = 4, channels: int = 3, size: int = 6, labels: list[int] | None = None) -> ImageSplit:
    images = torch.zeros(count, channels, size, size, dtype=torch.uint8)
    return ImageSplit(images, torch.tensor(labels or [0, 1, 0, 1]))


def data_of(train: ImageSplit | FileSplit, **changes: object) -> ImageData:
    arguments: dict[str, object] = {
        "label": "toy",
        "train": train,
        "test": split(),
        "class_names": ("a", "b"),
        "image_size": (6, 6),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    return ImageData(**{**arguments, **changes})  # type: ignore[arg-type]


def test_a_record_that_fits_is_accepted() -> None:
    assert data_of(split()).num_classes == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: split(count=3), r"labels must be int64 of shape \(3,\), .*got torch.int64 of shape \(4,\)"),
        (lambda: FileSplit(("a",), torch.tensor([0.0])), r"of shape \(1,\), .*got torch.float32 of shape \(1,\)"),
        (
            lambda: ImageSplit(torch.zeros(4, 6, 6), torch.zeros(4).long()),
            r"uint8 of shape \(N, C, H, W\), got torch.float32 of shape \(4, 6, 6\)",
        ),
        (
            lambda: data_of(split(labels=[0, 1, 2, 1])),
            "toy: labels must run from 0 to 1 for 2 classes, but those of the train split run from 0 to 2",
        ),
        (lambda: data_of(split(labels=[0, 1, -1, 1])), "train split run from -1 to 1"),
        (
            lambda: data_of(split(), validation=split(labels=[0, 9, 0, 1])),
            "those of the validation split run from 0 to 9",
        ),
        (lambda: data_of(split(size=5)), r"train split have shape \(3, 5, 5\), expected \(C, H, W\) = \(3, 6, 6\)"),
        (lambda: data_of(split(channels=1)), r"have shape \(1, 6, 6\), expected \(C, H, W\) = \(3, 6, 6\)"),
        (
            lambda: data_of(FileSplit((), torch.zeros(0).long())),
            "toy: the train split holds no images",
        ),
        (lambda: data_of(split(), test=FileSplit(("a",), torch.tensor([0]))), "all be files; test differs"),
        (lambda: data_of(split(), std=(0.5, 0.0, 0.5)), r"std positive, got .*std=\(0.5, 0.0, 0.5\)"),
        (lambda: data_of(split(), mean=(0.5,)), r"equally long and std positive, got mean=\(0.5,\)"),
    ],
)
def test_records_that_do_not_fit_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("sklearn.datasets", "digits", "the digits need scikit-learn.*backpass\\[lab\\]"),
        ("torchvision.datasets", "cifar10", "the CIFAR data sets need torchvision.*backpass\\[lab\\]"),
    ],
)
def test_a_missing_package_names_the_extra(
    module: str, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=message):
        load_dataset(name)
