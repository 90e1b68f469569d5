"""The data sets by name: what is read from tiny sets in the published layouts, how it is divided, and every refusal."""

import hashlib
import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backpass.errors import InputError, MissingExtraError
from backpass.training.datasets import CIFAR_MEAN, list_datasets, load_dataset
from backpass.training.image_folder import IMAGENET_MEAN, decode_image
from backpass.training.images import FileSplit, ImageData, ImageSplit, stratified_subset

torchvision_cifar = pytest.importorskip("torchvision.datasets.cifar")


def pixels(seed: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_folder(
    root: Path,
    counts: dict[str, dict[str, int]],
    size: tuple[int, int] = (6, 6),
) -> dict[str, dict[str, list[np.ndarray]]]:
    """Write ``counts[split][class]`` PNG images below ``root`` and return their pixels."""
    written: dict[str, dict[str, list[np.ndarray]]] = {}
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            images = [pixels(len(split) * 1000 + len(name) * 100 + i, *size) for i in range(count)]
            for i, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{i:03}.png")
            written.setdefault(split, {})[name] = images
    return written


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    write_folder(root, {"train": {"cat": 8, "eagle": 4}, "test": {"cat": 2, "eagle": 3}})
    return root


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
        ({"split_validation": 1.0}, "at least 0 and below 1, got 1.0"),
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


# Folders


def test_folder_is_decoded_class_by_class(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    counts = {"train": {"eagle": 4, "cat": 8}, "test": {"cat": 2, "eagle": 3}}
    written = write_folder(root, counts, size=(5, 7))
    data = load_dataset(f"folder:{root}")
    expected = np.stack(written["train"]["cat"] + written["train"]["eagle"])
    assert isinstance(data.train, ImageSplit)
    assert torch.equal(data.train.images, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == [0] * 8 + [1] * 4
    assert (data.class_names, data.image_size, data.label, len(data.test)) == (("cat", "eagle"), (5, 7), "pets", 5)
    assert data.mean == pytest.approx((expected / 255).mean((0, 1, 2)), abs=1e-12)
    assert data.std == pytest.approx((expected / 255).std((0, 1, 2)), abs=1e-12)


def test_label_and_normalisation_can_be_given(pets: Path) -> None:
    data = load_dataset("folder", root=pets, label="Pets (JPEG)", mean=[0.1, 0.2, 0.3], std=[1, 2, 3])
    assert (data.label, data.mean, data.std) == ("Pets (JPEG)", (0.1, 0.2, 0.3), (1, 2, 3))


def test_val_serves_where_there_is_no_test(pets: Path) -> None:
    (pets / "test").rename(pets / "val")
    assert len(load_dataset(f"folder:{pets}").test) == 5


def test_other_files_and_hidden_folders_are_passed_over(pets: Path) -> None:
    (pets / "train" / "cat" / "notes.txt").write_text("not an image")
    (pets / "train" / ".cache").mkdir()
    assert len(load_dataset(f"folder:{pets}").train) == 12


def test_limits_decode_only_what_they_keep(pets: Path) -> None:
    (pets / "test" / "cat" / "000.png").write_bytes(b"damaged")
    with pytest.raises(InputError):
        load_dataset(f"folder:{pets}")
    untouched = [
        seed for seed in range(20) if _loads(lambda seed=seed: load_dataset(f"folder:{pets}", limit_test=2, seed=seed))
    ]
    assert 0 < len(untouched) < 20


def _loads(load: Callable[[], ImageData]) -> bool:
    try:
        load()
    except InputError:
        return False
    return True


def test_images_of_another_size_or_too_many_are_streamed(pets: Path) -> None:
    assert load_dataset(f"folder:{pets}", image_size=6).streamed is False
    for data in (
        load_dataset(f"folder:{pets}", image_size=4),
        load_dataset(f"folder:{pets}", image_size=6, memory_limit=1e-9),
    ):
        assert isinstance(data.train, FileSplit)
        assert (len(data.train), len(data.test), data.mean) == (12, 5, IMAGENET_MEAN)
        assert data.train.files[0] == str(pets / "train" / "cat" / "000.png")
    with pytest.raises(InputError, match=r"as 6x6 pixels, over memory_limit=1e-09 GiB; give image_size"):
        load_dataset(f"folder:{pets}", memory_limit=1e-9)


def test_unequal_sizes_need_an_image_size(pets: Path) -> None:
    odd = pets / "test" / "eagle" / "001.png"
    Image.fromarray(pixels(0, 6, 9)).save(odd)
    with pytest.raises(InputError, match=rf"{odd} has 6x9 pixels and the first image 6x6; resize them, or give image"):
        load_dataset(f"folder:{pets}")
    assert load_dataset(f"folder:{pets}", image_size=6).streamed


def test_cache_answers_until_a_file_changes(pets: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_dataset(f"folder:{pets}", cache=cache)
    assert len(list(cache.iterdir())) == 2
    file = pets / "train" / "cat" / "001.png"
    status = file.stat()
    file.write_bytes(b"\0" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = load_dataset(f"folder:{pets}", cache=cache)
    assert isinstance(first.train, ImageSplit)
    assert isinstance(second.train, ImageSplit)
    assert torch.equal(first.train.images, second.train.images)

    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(InputError, match=rf"cannot decode the image {file} "):
        load_dataset(f"folder:{pets}", cache=cache)


def test_without_a_cache_nothing_is_written(pets: Path) -> None:
    before = sorted(pets.parent.rglob("*"))
    load_dataset(f"folder:{pets}")
    assert sorted(pets.parent.rglob("*")) == before


def test_grey_and_jpeg_images_become_rgb(tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.fromarray(pixels(0)[..., 0]).save(grey)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)).save(photo, quality=95)
    assert (np.asarray(decode_image(str(grey))) == pixels(0)[..., :1]).all()
    assert np.abs(np.asarray(decode_image(str(photo))).astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_undecodable_images_are_named(pets: Path, content: bytes | str) -> None:
    file = pets / "train" / "eagle" / "002.png"
    if isinstance(content, str):
        noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
        content = file.read_bytes()[:-60]
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot decode the image {file} .*replace or remove the file"):
        load_dataset(f"folder:{pets}")


def test_incomplete_folders_are_refused(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"the folder {tmp_path / 'none'} does not exist"):
        load_dataset(f"folder:{tmp_path / 'none'}")
    with pytest.raises(InputError, match=r"'folder' needs a folder; write folder:PATH or give root=PATH"):
        load_dataset("folder")
    with pytest.raises(InputError, match=rf"{pets / 'train'} holds no train/"):
        load_dataset(f"folder:{pets / 'train'}")

    (pets / "test").rename(pets / "elsewhere")
    with pytest.raises(InputError, match=rf"{pets} holds train/ but no test/ and no val/"):
        load_dataset(f"folder:{pets}")
    (pets / "test").mkdir()
    with pytest.raises(InputError, match=rf"{pets / 'test'} holds no class folders and so no images"):
        load_dataset(f"folder:{pets}")


def test_empty_classes_are_refused(pets: Path) -> None:
    for split in ("train", "test"):
        (pets / split / "dog").mkdir()
    with pytest.raises(InputError, match=rf"the class folder {pets / 'train' / 'dog'} holds no images"):
        load_dataset(f"folder:{pets}")


def test_classes_must_be_the_same_in_both_splits(pets: Path) -> None:
    (pets / "test" / "cat").rename(pets / "test" / "lion")
    with pytest.raises(InputError, match=r"only in train/: \['cat'\], only in test/: \['lion'\]"):
        load_dataset(f"folder:{pets}")


def test_imagenet_is_streamed_and_has_a_thousand_classes(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{pets} holds train/ but no val/"):
        load_dataset(f"imagenet:{pets}")
    (pets / "test").rename(pets / "val")
    with pytest.raises(InputError, match=rf"1000 classes, but {pets} has 2 class folders; use folder:{pets}"):
        load_dataset(f"imagenet:{pets}")

    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        for number in range(1000):
            (root / split / f"n{number:08}").mkdir(parents=True)
            (root / split / f"n{number:08}" / "1.JPEG").touch()
    data = load_dataset(f"imagenet:{root}")
    assert data.streamed
    assert (data.label, data.num_classes, data.image_size, len(data.train)) == ("ImageNet", 1000, (224, 224), 1000)


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
