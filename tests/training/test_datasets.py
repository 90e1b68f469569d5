"""Data sets by name: reading small sets in the published formats, subsets, and errors."""

import hashlib
import io
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from backpass.errors import InputError, MissingExtraError
from backpass.training.datasets import CIFAR_MEAN, list_datasets, load_dataset
from backpass.training.images import FileSplit, ImageData, ImageSplit, stratified_subset

torchvision_cifar = pytest.importorskip("torchvision.datasets.cifar")


class OldNumpyPickler(pickle.Pickler):
    """Pickles arrays as the NumPy of Python 2 did in the published batches."""

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[np.ndarray, list[int]]:
    """Write a small CIFAR set in the published format, patch torchvision's checksums and return the training set."""
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


def test_digits_are_those_of_scikit_learn_with_a_max_value_of_16() -> None:
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


def test_the_split_of_the_digits_is_stratified_and_independent_of_the_seed() -> None:
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
    # Quotas 3, 1.5 and 0.5: one of the two halves is rounded up.
    assert labels[chosen].bincount(minlength=4).tolist() in ([3, 2, 0, 0], [3, 1, 0, 1])
    assert chosen.tolist() == sorted(set(chosen.tolist()))


@pytest.mark.parametrize("count", [0, 1, 7, 50, 99, 100])
def test_stratified_subset_keeps_the_fractions_within_one_item(count: int) -> None:
    labels = torch.randint(7, (100,), generator=torch.Generator().manual_seed(0))
    chosen = stratified_subset(labels, count, torch.Generator().manual_seed(1))
    assert len(set(chosen.tolist())) == len(chosen) == count
    quotas = labels.bincount(minlength=7) * count / 100
    assert ((labels[chosen].bincount(minlength=7) - quotas).abs() < 1).all()


def test_stratified_subset_draws_items_and_ties_uniformly() -> None:
    labels = torch.arange(10) // 2
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(10)
    for _ in range(1000):
        hits[stratified_subset(labels, 2, generator)] += 1
    assert ((hits - 200).abs() < 60).all()  # more than 4 standard deviations of 12.6


def test_limits_and_validation_are_stratified_and_depend_on_the_seed() -> None:
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
        ({"limit_train": 0}, "expected 1 <= limit_train <= 1438, .* got 0; set it to None"),
        ({"limit_train": 1439}, "expected 1 <= limit_train <= 1438, .* got 1439"),
        ({"limit_train": 1438, "split_validation": 0.2}, "<= 1150, .* the 288 held out for validation, got 1438"),
        ({"limit_test": 360}, "expected 1 <= limit_test <= 359, .* got 360"),
        ({"split_validation": 1.0}, "expected 0 <= split_validation < 1, got 1.0"),
        ({"split_validation": 1e-4}, "one for validation, got 1438 and 0 with split_validation=0.0001 of 1438 items"),
        ({"image_size": 16}, "expected image_size >= 1 with folder:PATH or imagenet:PATH, got 16 with 'digits'"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset("digits", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mnist", "Digits", "digits:somewhere", ""])
def test_errors_for_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in list_datasets())


def test_an_import_path_that_is_no_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="expected data set 'math:pi' to be a function that returns a data set, got"):
        load_dataset("math:pi")
    with pytest.raises(InputError, match=r"expected 'math:gcd' to return a backpass.training.ItemData or ImageData"):
        load_dataset("math:gcd")


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


def test_the_old_pickle_format_of_the_batches_does_not_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10")
    load_pickle = pickle.load

    def load_with_warning(*args: object, **kwargs: object) -> object:
        warnings.warn("align should be boolean", np.exceptions.VisibleDeprecationWarning, stacklevel=2)
        return load_pickle(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torchvision_cifar.pickle, "load", load_with_warning)
    assert len(load_dataset("cifar10", root=tmp_path).train) == 20
    with pytest.warns(np.exceptions.VisibleDeprecationWarning):
        torchvision_cifar.CIFAR10(str(tmp_path))


def test_missing_cifar_files_are_refused_with_their_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("cifar10", root=tmp_path)
    assert f"of cifar10 in {tmp_path / 'cifar-10-batches-py'}, got no such folder" in str(caught.value)
    assert "download=True" in str(caught.value)


def test_damaged_cifar_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(InputError, match="got a folder with a missing or damaged file"):
        load_dataset("cifar10", root=tmp_path)


def test_files_are_downloaded_only_with_download_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []
    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", lambda url, *_, **__: requested.append(url))
    with pytest.raises(InputError):
        load_dataset("cifar100", root=tmp_path)
    assert requested == []
    with pytest.raises(InputError):
        load_dataset("cifar100", root=tmp_path, download=True)
    assert requested == [torchvision_cifar.CIFAR100.url]


def test_one_process_downloads_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "new"
    write_cifar(tmp_path / "server", monkeypatch, "cifar10")

    def download(*_: object, **__: object) -> None:
        with pytest.raises(Timeout):
            FileLock(root / ".cifar10.lock", is_singleton=False).acquire(timeout=0)
        (tmp_path / "server" / "cifar-10-batches-py").rename(root / "cifar-10-batches-py")

    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", download)
    assert len(load_dataset("cifar10", root=root, download=True).train) == 20
    (root / ".cifar10.lock").unlink(missing_ok=True)
    assert len(load_dataset("cifar10", root=root, download=True).train) == 20
    assert not (root / ".cifar10.lock").exists()  # complete files are read where nothing can be written


@pytest.mark.parametrize(
    "failure",
    [URLError("no route to host"), ConnectionResetError("no route to host"), RuntimeError("no route to host")],
)
def test_a_download_that_fails_is_named(failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", download)
    with pytest.raises(InputError) as caught:
        load_dataset("cifar10", root=tmp_path, download=True)
    assert f"expected to download cifar10 from {torchvision_cifar.CIFAR10.url}, got " in str(caught.value)
    assert "no route to host" in str(caught.value)
    assert str(caught.value).endswith(f"or put the published files into {tmp_path / 'cifar-10-batches-py'}")


# Splits and data sets


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


def test_consistent_data_is_accepted() -> None:
    assert data_of(split()).num_classes == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: split(count=3), r"int64 labels of shape \(3,\), .*got torch.int64 of shape \(4,\)"),
        (lambda: FileSplit(("a",), torch.tensor([0.0])), r"of shape \(1,\), .*got torch.float32 of shape \(1,\)"),
        (
            lambda: ImageSplit(torch.zeros(4, 6, 6), torch.zeros(4).long()),
            r"uint8 images of shape \(N, C, H, W\), got torch.float32 of shape \(4, 6, 6\)",
        ),
        (
            lambda: data_of(split(labels=[0, 1, 2, 1])),
            "expected labels from 0 to 1 in the train split of toy, got 0 to 2",
        ),
        (lambda: data_of(split(labels=[0, 1, -1, 1])), "in the train split of toy, got -1 to 1"),
        (
            lambda: data_of(split(), validation=split(labels=[0, 9, 0, 1])),
            "in the validation split of toy, got 0 to 9",
        ),
        (lambda: data_of(split(size=5)), r"\(C, H, W\) = \(3, 6, 6\) in the train split of toy, got \(3, 5, 5\)"),
        (lambda: data_of(split(channels=1)), r"\(C, H, W\) = \(3, 6, 6\) .*, got \(1, 6, 6\)"),
        (
            lambda: data_of(FileSplit((), torch.zeros(0).long())),
            "expected images in the train split of toy, got none",
        ),
        (
            lambda: data_of(split(), test=FileSplit(("a",), torch.tensor([0]))),
            "expected images in memory in the test split .*, got files",
        ),
        (lambda: data_of(split(), std=(0.5, 0.0, 0.5)), r"std > 0, got .*std=\(0.5, 0.0, 0.5\)"),
        (lambda: data_of(split(), mean=(0.5,)), r"one value per channel and std > 0, got mean=\(0.5,\)"),
    ],
)
def test_inconsistent_data_is_refused(make: Callable[[], object], message: str) -> None:
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
