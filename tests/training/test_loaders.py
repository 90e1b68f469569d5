"""Plans and loaders: batches do not depend on resumption, number of processes, measuring, device or workers."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backpass.errors import InputError
from backpass.training import classification
from backpass.training.augment import Augmentation, normalize
from backpass.training.datasets import load_dataset
from backpass.training.image_folder import decode_image
from backpass.training.images import ImageData, ImageSplit
from backpass.training.loader import BatchPlan, DeviceLoader, Loader
from backpass.training.loaders import measuring_batches
from backpass.training.stream import StreamAugmentation, StreamLoader, _stream_transform
from training.loading import loaders_of

pytest.importorskip("torchvision")

Batch = tuple[Tensor, Tensor]

AUGMENTATION = Augmentation(crop_padding=2, flip=True, cutout=3)


def toy_data(train: int = 22, test: int = 7) -> ImageData:
    """Images of one colour each, a different one for each; labels equal to the index."""

    def split(count: int) -> ImageSplit:
        colour = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1) * 5 + 3
        return ImageSplit(colour.expand(-1, 3, 6, 6).contiguous(), torch.arange(count))

    return ImageData(
        label="toy",
        train=split(train),
        test=split(test),
        class_names=tuple(map(str, range(max(train, test)))),
        image_size=(6, 6),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )


@pytest.fixture
def photos(tmp_path: Path) -> ImageData:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(20, 40, 2)
                Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return load_dataset(f"folder:{tmp_path}", image_size=16)


def device_loader(**changes: object) -> DeviceLoader:
    data = toy_data()
    assert isinstance(data.train, ImageSplit)
    arguments = {"count": 22, "batch_size": 4, "training": True, "seed": 5}
    plan = BatchPlan(**{**arguments, **changes})  # type: ignore[arg-type]
    return DeviceLoader(data.train, data, plan, AUGMENTATION)


def stream_loader(data: ImageData, workers: int = 0, **changes: object) -> Loader:
    arguments: dict[str, object] = {"batch_size": 4, "seed": 5}
    return loaders_of(data, workers=workers, **{**arguments, **changes}).train  # type: ignore[arg-type]


def joined(batches: Iterable[Batch]) -> Batch:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def same(left: Iterable[Batch], right: Iterable[Batch]) -> bool:
    (x, y), (other_x, other_y) = joined(left), joined(right)
    return torch.equal(x, other_x) and torch.equal(y, other_y)


# Plans


def test_an_epoch_shows_every_image_once() -> None:
    plan = BatchPlan(count=22, batch_size=4, training=True, seed=1)
    assert sorted(plan.order(0).tolist()) == list(range(22))
    full = torch.split(plan.order(0), 4)[:5]
    assert [plan.order(0)[s].tolist() for s in plan.shards()] == [part.tolist() for part in full]


def test_order_follows_from_seed_and_epoch_and_nothing_else() -> None:
    def order(seed: int, epoch: int, **changes: int) -> list[int]:
        return BatchPlan(count=50, batch_size=10, training=True, seed=seed, **changes).order(epoch).tolist()

    torch.manual_seed(0)
    first = order(3, 4)
    torch.manual_seed(1)
    assert order(3, 4) == first == order(3, 4, rank=1, world_size=2)
    distinct = {tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(distinct) == 25


def test_without_shuffling_the_order_is_that_of_the_split() -> None:
    assert BatchPlan(count=5, batch_size=2, seed=9).order(3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_parts_of_all_processes_make_the_batches_of_one(world_size: int) -> None:
    single = BatchPlan(count=22, batch_size=4, training=True).shards()
    ranks = [
        BatchPlan(count=22, batch_size=4, training=True, rank=r, world_size=world_size).shards()
        for r in range(world_size)
    ]
    assert len(single) == 5
    for batch, parts in zip(single, zip(*ranks, strict=True), strict=True):
        assert [i for part in parts for i in range(22)[part]] == list(range(22)[batch])
        assert {part.stop - part.start for part in parts} == {4 // world_size}


@pytest.mark.parametrize("count", range(1, 12))
def test_evaluation_on_many_processes_sees_every_image_once(count: int) -> None:
    ranks = [BatchPlan(count=count, batch_size=5, rank=r, world_size=3).shards() for r in range(3)]
    seen = [i for shards in ranks for shard in shards for i in range(count)[shard]]
    assert sorted(seen) == list(range(count))
    assert all(shard.start < shard.stop for shards in ranks for shard in shards)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"training": True, "batch_size": 11}, "at least one batch of 11 images, got 10 images; lower batch_size"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchPlan(**{"count": 10, "batch_size": 4, **arguments})


# Images on the device


def test_images_keep_their_labels_and_are_normalised() -> None:
    data = toy_data()
    loader = loaders_of(data, batch_size=4).train
    images, labels = joined(loader)
    assert isinstance(data.train, ImageSplit)
    assert images.dtype == torch.float32
    assert torch.equal(images, normalize(data.train.images[labels], data.mean, data.std))
    assert labels.tolist() == loader.plan.order(0)[:20].tolist()
    assert len(loader) == 5


def test_pixels_are_scaled_by_the_max_value_of_the_data_set() -> None:
    data = load_dataset("digits", limit_train=20)
    images, labels = joined(loaders_of(data, batch_size=20).train)
    assert isinstance(data.train, ImageSplit)
    order = loaders_of(data, batch_size=20).train.plan.order(0)
    expected = (data.train.images[order].double() / 16 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(images.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(labels, data.train.labels[order])


def test_augmented_images_hold_their_own_colour_black_padding_and_the_cut_square() -> None:
    loader = device_loader()
    images, labels = joined(loader.iter_epoch(2))
    black, cut = (torch.tensor(x).view(3, 1, 1) for x in ([-0.25, -0.4, -0.5], [0.0] * 3))
    for image, label in zip(images, labels, strict=True):
        own = normalize(torch.full((1, 3, 1, 1), int(label) * 5 + 3, dtype=torch.uint8), loader.mean, loader.std)[0]
        kinds = torch.stack([(image - colour).abs().amax(0) < 1e-6 for colour in (own, black, cut)])
        assert kinds.any(0).all()
        assert 4 <= kinds[2].sum() <= 9
    whole = (images.unflatten(0, (-1, 4)) - black).abs().amax(2) < 1e-6
    assert whole.any()


def test_evaluation_is_unaugmented_in_order_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy_data()
    monkeypatch.setattr(classification, "_EVALUATION_BATCH_SIZE", 3)
    loaders = loaders_of(data, batch_size=3, augmentation=AUGMENTATION)
    assert isinstance(data.test, ImageSplit)
    images, labels = joined(loaders.test)
    assert torch.equal(images, normalize(data.test.images, data.mean, data.std))
    assert labels.tolist() == list(range(7))
    assert [len(y) for _, y in loaders.test] == [3, 3, 1]
    assert loaders.validation is None


def test_validation_is_evaluated_like_the_test_images() -> None:
    data = load_dataset("digits", split_validation=0.5, limit_train=30, seed=1)
    validation = loaders_of(data, batch_size=30).validation
    assert validation is not None
    assert data.validation is not None
    assert torch.equal(joined(validation)[1], data.validation.labels)


def test_epochs_differ_and_each_can_be_repeated() -> None:
    loader = device_loader()
    first, second = list(loader.iter_epoch(0)), list(loader.iter_epoch(1))
    assert not same(first, second)
    assert same(device_loader().iter_epoch(1), second)
    assert same(loader.iter_epoch(1), second)
    assert same(loader, first)
    assert not same(device_loader(seed=6).iter_epoch(1), second)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(device_loader())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(device_loader(), first)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_see_the_augmented_batches_of_one(world_size: int) -> None:
    single = list(device_loader())
    ranks = [list(device_loader(rank=r, world_size=world_size)) for r in range(world_size)]
    for batch, parts in zip(single, zip(*ranks, strict=True), strict=True):
        assert same([batch], parts)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_changes_no_value(channels_last: bool) -> None:
    loader = loaders_of(toy_data(), batch_size=4, augmentation=AUGMENTATION, channels_last=channels_last, seed=5).train
    batches = list(loader)
    for images, _ in batches:
        assert images.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert same(batches, device_loader())


# Measuring


def test_measuring_changes_neither_order_nor_augmentation() -> None:
    undisturbed = list(device_loader().iter_epoch(1))
    loader = device_loader()
    batches = []
    for batch in loader.iter_epoch(1):
        measuring_batches(loader, 2, epoch=1)
        batches.append(batch)
    assert same(batches, undisturbed)


def test_measuring_batches_are_training_images_without_repetition_and_differ_between_epochs() -> None:
    data = toy_data()
    loader = loaders_of(data, batch_size=4, seed=5).train
    measured = measuring_batches(loader, 3, epoch=0)
    assert [tuple(x.shape) for x in measured] == [(4, 3, 6, 6)] * 3
    assert isinstance(data.train, ImageSplit)
    known = normalize(data.train.images, data.mean, data.std)[:, 0, 0, 0].tolist()
    seen = torch.cat(measured)[:, 0, 0, 0].tolist()
    assert len(set(seen)) == 12
    assert set(seen) <= set(known)

    assert torch.equal(torch.cat(measuring_batches(loader, 3, epoch=0)), torch.cat(measured))
    assert not torch.equal(torch.cat(measuring_batches(loader, 3, epoch=1)), torch.cat(measured))
    trained = torch.cat([x for x, _ in loader.iter_epoch(0)][:3])
    assert not torch.equal(trained, torch.cat(measured))


def test_measuring_batches_are_augmented() -> None:
    plain = torch.cat(measuring_batches(loaders_of(toy_data(), batch_size=4, seed=5).train, 3, epoch=0))
    augmented = torch.cat(measuring_batches(device_loader(), 3, epoch=0))
    assert (plain.flatten(2).std(2) < 1e-6).all()
    assert (augmented.flatten(2).std(2) > 1e-3).any(1).all()


def test_parts_of_all_processes_make_the_measuring_batches_of_one() -> None:
    single = measuring_batches(device_loader(), 3, epoch=2)
    ranks = [measuring_batches(device_loader(rank=r, world_size=2), 3, epoch=2) for r in range(2)]
    for batch, parts in zip(single, zip(*ranks, strict=True), strict=True):
        assert torch.equal(batch, torch.cat(parts))


def test_measuring_returns_at_most_the_full_batches_of_the_split() -> None:
    assert [len(x) for x in measuring_batches(device_loader(), 100, epoch=0)] == [4] * 5
    with pytest.raises(InputError, match="expected count >= 1 batches to measure on, got 0"):
        measuring_batches(device_loader(), 0, epoch=0)


# Streams


def test_streamed_evaluation_is_resize_and_centre_crop(photos: ImageData) -> None:
    loader = loaders_of(photos, batch_size=4).test
    images, labels = joined(loader)
    assert labels.tolist() == [0] * 3 + [1] * 3
    for image, file in zip(images, photos.test.files, strict=True):  # type: ignore[union-attr]
        picture = decode_image(file)
        scale = 18 / min(picture.size)  # round(16 / 0.875)
        width, height = (max(18, int(side * scale)) for side in picture.size)
        left, top = round((width - 16) / 2), round((height - 16) / 2)
        resized = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 16, top + 16))
        expected = normalize(torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None], photos.mean, photos.std)
        torch.testing.assert_close(image, expected[0])


def test_streamed_training_repeats_by_seed_and_epoch(photos: ImageData) -> None:
    first = list(stream_loader(photos).iter_epoch(1))
    assert [tuple(x.shape) for x, _ in first] == [(4, 3, 16, 16)] * 3
    assert same(stream_loader(photos).iter_epoch(1), first)
    assert not same(stream_loader(photos).iter_epoch(2), first)
    assert not same(stream_loader(photos, seed=6).iter_epoch(1), first)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_measuring_and_interruptions_change_nothing(photos: ImageData) -> None:
    expected = [list(stream_loader(photos).iter_epoch(epoch)) for epoch in range(2)]
    measured = torch.cat(measuring_batches(stream_loader(photos), 2, epoch=0))
    loader = stream_loader(photos, workers=2)
    interrupted = loader.iter_epoch(0)
    next(interrupted)
    del interrupted
    assert same(loader.iter_epoch(0), expected[0])

    batches: list[Batch] = []
    for batch in loader.iter_epoch(1):
        if not batches:
            assert torch.equal(torch.cat(measuring_batches(loader, 2, epoch=0)), measured)
        batches.append(batch)
    assert same(batches, expected[1])


def test_streaming_neither_uses_nor_changes_the_global_random_state(photos: ImageData) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(stream_loader(photos))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(stream_loader(photos), first)


def test_streamed_parts_of_processes_make_the_batches_of_one(photos: ImageData) -> None:
    ranks = [list(stream_loader(photos, rank=r, world_size=2)) for r in range(2)]
    for batch, parts in zip(stream_loader(photos), zip(*ranks, strict=True), strict=True):
        assert same([batch], parts)


@pytest.mark.parametrize("channels_last", [False, True])
def test_streamed_batches_keep_the_memory_format(photos: ImageData, channels_last: bool) -> None:
    images, _ = next(iter(stream_loader(photos, channels_last=channels_last)))
    assert images.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_stream_augmentation_can_be_switched_off_piece_by_piece(photos: ImageData) -> None:
    def batch(**changes: object) -> Tensor:
        augmentation = StreamAugmentation(**changes)  # type: ignore[arg-type]
        return joined(stream_loader(photos, stream_augmentation=augmentation))[0]

    assert not torch.equal(batch(flip=False), batch())
    assert not torch.equal(batch(color_jitter=0.0), batch())
    assert not torch.equal(batch(min_scale=1.0), batch())


def test_streamed_images_are_mirrored_half_of_the_time_and_never_upside_down() -> None:
    transform = _stream_transform((8, 8), StreamAugmentation(min_scale=1.0, color_jitter=0.0))
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4] = 255  # one quarter, at the upper left
    torch.manual_seed(0)
    seen = [transform(Image.fromarray(pixels)) for _ in range(400)]
    mirrored = [bool(image[0, :4, 4:].float().mean() > image[0, :4, :4].float().mean()) for image in seen]
    assert 160 < sum(mirrored) < 240
    assert all(image[0, :4].float().mean() > image[0, 4:].float().mean() for image in seen)


def test_colour_jitter_changes_brightness_by_no_more_than_its_strength() -> None:
    transform = _stream_transform((8, 8), StreamAugmentation(color_jitter=0.06))
    grey = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    torch.manual_seed(0)
    seen = [transform(grey).float().mean().item() for _ in range(300)]
    assert 187 <= min(seen) < 190
    assert 210 < max(seen) <= 213
    colour = Image.fromarray(np.tile(np.array([200, 100, 50], np.uint8), (8, 8, 1)))
    shares = [image[0] / image[2] for image in (transform(colour).float().mean((1, 2)) for _ in range(100))]
    assert max(shares) - min(shares) > 0.1  # of saturation, which brightness alone leaves


def test_a_damaged_file_is_named_while_streaming(photos: ImageData) -> None:
    file = photos.train.files[3]  # type: ignore[union-attr]
    Path(file).write_bytes(b"damaged")
    with pytest.raises(InputError, match=f"expected {file} to be a readable image"):
        list(stream_loader(photos))


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: StreamAugmentation(min_scale=0.0), "min_scale to be a finite number > 0 and <= 1, got 0.0"),
        (lambda data: StreamAugmentation(color_jitter=1.0), "color_jitter to be a finite number >= 0 and < 1, got 1.0"),
        (
            lambda data: loaders_of(data, batch_size=4, augmentation=Augmentation()),
            "expected cutout < 6 for images of 6x6 pixels, got 16",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[ImageData], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(toy_data())


def test_a_process_with_fewer_images_than_micro_batches_is_refused() -> None:
    settings = {"batch_size": 8, "micro_batches": 8}
    assert loaders_of(toy_data(), **settings).train.plan.batch_size == 8
    text = r"multiple of 16, the number of processes \(2\) times micro_batches \(8\), got 8; change it"
    with pytest.raises(InputError, match=text):
        loaders_of(toy_data(), world_size=2, **settings)
    halves = loaders_of(toy_data(), world_size=2, batch_size=8, micro_batches=4)
    assert len(next(iter(halves.train))[0]) == 4


def test_files_are_streamed(photos: ImageData) -> None:
    assert isinstance(loaders_of(photos, batch_size=4).test, StreamLoader)


@pytest.mark.cuda
def test_the_device_changes_no_batch() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for device in ("cpu", "cuda"):
        loader = loaders_of(toy_data(), batch_size=4, augmentation=AUGMENTATION, device=device, seed=5).train
        for (images, labels), (expected, expected_labels) in zip(loader, device_loader(), strict=True):
            assert images.device.type == device
            torch.testing.assert_close(images.cpu(), expected)
            assert torch.equal(labels.cpu(), expected_labels)
