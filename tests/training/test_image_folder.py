"""Folders of images: listing, decoding, the cache, and errors."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backpass.errors import InputError
from backpass.training.datasets import load_dataset
from backpass.training.image_folder import IMAGENET_MEAN, decode_image
from backpass.training.images import FileSplit, ImageData, ImageSplit
from training.folders import pixels, write_folder


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


def test_the_label_can_be_given(pets: Path) -> None:
    assert load_dataset("folder", root=pets, label="Pets (JPEG)").label == "Pets (JPEG)"


def test_val_is_used_if_there_is_no_test(pets: Path) -> None:
    (pets / "test").rename(pets / "val")
    assert len(load_dataset(f"folder:{pets}").test) == 5


def test_other_files_and_hidden_folders_are_ignored(pets: Path) -> None:
    (pets / "train" / "cat" / "notes.txt").write_text("not an image")
    (pets / "train" / ".cache").mkdir()
    (pets / "train" / "cat" / ".thumbnails").mkdir()
    for hidden in (".thumbnails/0.png", "._000.png"):
        shutil.copy(pets / "train" / "cat" / "000.png", pets / "train" / "cat" / hidden)
    assert len(load_dataset(f"folder:{pets}").train) == 12


def test_a_constant_channel_is_held_and_not_scaled(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            drawn = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
            drawn[..., 2] = 7
            Image.fromarray(drawn).save(tmp_path / split / name / "0.png")
    assert load_dataset(f"folder:{tmp_path}").std[2] == 1.0


def test_the_home_folder_is_expanded(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pets.parent))
    assert len(load_dataset("folder:~/pets").train) == 12


def test_nested_files_are_sorted_by_class_and_path(pets: Path) -> None:
    cats = pets / "train" / "cat"
    nested = cats / "000" / "deeper"
    nested.mkdir(parents=True)
    (cats / "003.png").rename(nested / "z.PNG")
    (pets / "train" / "cat-like").mkdir()
    (pets / "test" / "cat-like").mkdir()
    (cats / "001.png").rename(pets / "train" / "cat-like" / "001.png")
    (pets / "test" / "cat" / "000.png").rename(pets / "test" / "cat-like" / "000.png")
    data = load_dataset(f"folder:{pets}", image_size=4)
    assert isinstance(data.train, FileSplit)
    assert [str(Path(file).relative_to(cats.parent)) for file in data.train.files[:8]] == [
        "cat/000.png",
        "cat/000/deeper/z.PNG",
        "cat/002.png",
        "cat/004.png",
        "cat/005.png",
        "cat/006.png",
        "cat/007.png",
        "cat-like/001.png",
    ]
    assert data.train.labels.tolist() == [0] * 7 + [1] + [2] * 4


def test_linked_folders_are_followed(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (pets / "train" / "cat" / "003.png").rename(tmp_path / "elsewhere" / "z.png")
    (pets / "train" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    assert len(load_dataset(f"folder:{pets}").train) == 12


def test_with_limits_only_the_selected_images_are_decoded(pets: Path) -> None:
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
    with pytest.raises(InputError, match=r"memory_limit=1e-09 GiB, got .* at 6x6 pixels; give image_size"):
        load_dataset(f"folder:{pets}", memory_limit=1e-9)


def test_unequal_sizes_need_an_image_size(pets: Path) -> None:
    odd = pets / "test" / "eagle" / "001.png"
    Image.fromarray(pixels(0, 6, 9)).save(odd)
    with pytest.raises(InputError, match=rf"expected 6x6 pixels in {odd}, as in the first image, got 6x9; resize"):
        load_dataset(f"folder:{pets}")
    assert load_dataset(f"folder:{pets}", image_size=6).streamed


def test_nothing_is_written(pets: Path) -> None:
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
    with pytest.raises(InputError, match=rf"expected {file} to be a readable image, got .*replace or remove the file"):
        load_dataset(f"folder:{pets}")


def test_incomplete_folders_are_refused(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"got {tmp_path / 'none'}, which does not exist"):
        load_dataset(f"folder:{tmp_path / 'none'}")
    with pytest.raises(InputError, match="expected folder:PATH, got 'folder' and no root; add the path"):
        load_dataset("folder")
    with pytest.raises(InputError, match=rf"expected {pets / 'train'} to hold .*, got no train/; add it"):
        load_dataset(f"folder:{pets / 'train'}")

    (pets / "test").rename(pets / "elsewhere")
    with pytest.raises(InputError, match=rf"expected {pets} to hold test/ or val/ next to train/, got none"):
        load_dataset(f"folder:{pets}")
    (pets / "test").mkdir()
    with pytest.raises(InputError, match=rf"got no class folders in {pets / 'test'}; add them"):
        load_dataset(f"folder:{pets}")


def test_empty_classes_are_refused(pets: Path) -> None:
    for split in ("train", "test"):
        (pets / split / "dog").mkdir()
    with pytest.raises(InputError, match=rf"in the class folder {pets / 'train' / 'dog'}, got none; add"):
        load_dataset(f"folder:{pets}")


def test_classes_must_be_the_same_in_both_splits(pets: Path) -> None:
    (pets / "test" / "cat").rename(pets / "test" / "lion")
    with pytest.raises(InputError, match=r"only in train/: \['cat'\], only in test/: \['lion'\]"):
        load_dataset(f"folder:{pets}")


def test_imagenet_is_streamed_and_has_a_thousand_classes(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"expected {pets} to hold val/ next to train/, got none"):
        load_dataset(f"imagenet:{pets}")
    (pets / "test").rename(pets / "val")
    with pytest.raises(InputError, match=rf"{pets} to hold the 1000 class folders .*, got 2; use folder:{pets}"):
        load_dataset(f"imagenet:{pets}")

    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        for number in range(1000):
            (root / split / f"n{number:08}").mkdir(parents=True)
            (root / split / f"n{number:08}" / "1.JPEG").touch()
    data = load_dataset(f"imagenet:{root}")
    assert data.streamed
    assert (data.label, data.num_classes, data.image_size, len(data.train)) == ("ImageNet", 1000, (224, 224), 1000)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_grey_values_of_16_bits_keep_black_grey_and_white(name: str, tmp_path: Path) -> None:
    values = np.array([[0, 257, 257 * 100], [257 * 100 + 128, 257 * 100 + 129, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    decoded = np.asarray(decode_image(str(tmp_path / name)))
    assert decoded.shape == (2, 3, 3)
    assert decoded[..., 0].tolist() == [[0, 1, 100], [100, 101, 255]]
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_a_defined_white_are_refused(dtype: type, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "image.tif"
    Image.fromarray(np.linspace(0, 1, 12).reshape(3, 4).astype(dtype)).save(file)
    with pytest.raises(InputError, match=rf"expected {file} to have 8 or 16 bits .* mode '{mode}', .*; convert"):
        decode_image(str(file))


def test_images_of_too_many_pixels_are_refused(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses to decode more than twice ``MAX_IMAGE_PIXELS``, so that a small file cannot fill the memory."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(InputError, match=r"000.png to be a readable image, got Image size \(36 pixels\) exceeds limit"):
        load_dataset(f"folder:{pets}")
