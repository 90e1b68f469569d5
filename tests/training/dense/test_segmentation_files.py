import pickle

import numpy
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from backpass.errors import InputError
from backpass.training.dense.segmentation_files import camvid, cityscapes

CITIES = {"train": {"aachen": 2, "zurich": 1}, "val": {"lindau": 1}}
# Raw id and train id of some classes, from the benchmark's table: unlabeled, road, sidewalk, parking, car, bicycle.
IDS = {0: 255, 7: 0, 8: 1, 9: 255, 26: 13, 33: 18}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def city(tmp_path):
    """Write Cityscapes in small, with raw ids and train ids; return its folder."""
    numbers = numpy.random.default_rng(0)
    for split, cities in CITIES.items():
        for name, count in cities.items():
            for number in range(count):
                stem = f"{name}_{number:06d}_000019"
                pixels = numbers.integers(0, 256, (6, 12, 3), dtype=numpy.uint8)
                raw = numbers.choice(list(IDS), (6, 12)).astype(numpy.uint8)
                train = numpy.vectorize(IDS.get)(raw).astype(numpy.uint8)
                save(tmp_path / "leftImg8bit" / split / name / f"{stem}_leftImg8bit.png", pixels)
                save(tmp_path / "gtFine" / split / name / f"{stem}_gtFine_labelIds.png", raw)
                save(tmp_path / "gtFine" / split / name / f"{stem}_gtFine_labelTrainIds.png", train)
    return tmp_path


def label_file(city, suffix="labelIds"):
    return city / "gtFine" / "val" / "lindau" / f"lindau_000000_000019_gtFine_{suffix}.png"


@pytest.mark.parametrize("ids", ["raw", "train"])
def test_both_kinds_of_ids(city, ids):
    data = cityscapes(city, "train", ids)
    assert [file.rpartition("/")[2] for file in data.images] == [
        f"{stem}_000019_leftImg8bit.png" for stem in ("aachen_000000", "aachen_000001", "zurich_000000")
    ]
    assert len(data) == 3
    for index in range(3):
        image, labels = data[index]
        raw = numpy.asarray(
            Image.open(
                data.images[index].replace("leftImg8bit", "gtFine", 1).replace("leftImg8bit.png", "gtFine_labelIds.png")
            )
        )
        assert labels.tolist() == [[IDS[value] for value in row] for row in raw.tolist()]
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(numpy.array(Image.open(data.images[index]))))
        assert isinstance(image, tv_tensors.Image)
        assert isinstance(labels, tv_tensors.Mask)
        assert (image.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_worker_processes_can_receive_the_data_set(city):
    data = cityscapes(city, "val")
    received = pickle.loads(pickle.dumps(data))
    assert all(map(torch.equal, received[0], data[0]))


def test_the_classes(city):
    names = cityscapes(city, "val").class_names
    assert len(names) == 19
    assert (names[0], names[13], names[18]) == ("road", "car", "bicycle")


def test_every_raw_id(city):
    """Ids 0 to 33, of which 19 are classes; 255 is what -1, a licence plate, becomes in 8 bits."""
    file = label_file(city)
    save(file, numpy.array([*range(34), 255, 255], dtype=numpy.uint8).reshape(3, 12))
    save(city / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png", numpy.zeros((3, 12, 3), numpy.uint8))
    labels = cityscapes(city, "val")[0][1].flatten().tolist()
    classes = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert labels == [classes.index(value) if value in classes else 255 for value in [*range(34), 255, 255]]


@pytest.mark.parametrize(
    ("ids", "suffix", "known"), [("raw", "labelIds", "0-33, 255"), ("train", "labelTrainIds", "0-18, 255")]
)
def test_ids_that_do_not_exist(city, ids, suffix, known):
    file = label_file(city, suffix)
    values = numpy.zeros((6, 12), numpy.uint8)
    values[0, :4] = 40, 41, 42, 99
    save(file, values)
    with pytest.raises(InputError) as caught:
        cityscapes(city, "val", ids)[0]
    assert f"expected {file} to hold the ids {known} of Cityscapes (val), got 40-42, 99; check" in str(caught.value)


def test_raw_ids_where_train_ids_are_expected(city):
    file = label_file(city, "labelTrainIds")
    save(file, numpy.full((6, 12), 26, numpy.uint8))
    with pytest.raises(InputError, match=f"expected {file} to hold the ids 0-18, 255"):
        cityscapes(city, "val", "train")[0]


def test_a_missing_label_file(city):
    label_file(city).unlink()
    with pytest.raises(InputError, match=f"got none at {label_file(city)} and 0 others; unpack"):
        cityscapes(city, "val")
    assert len(cityscapes(city, "val", "train")) == 1


def test_missing_folders(city, tmp_path_factory):
    with pytest.raises(InputError, match="got no leftImg8bit/train; unpack"):
        cityscapes(tmp_path_factory.mktemp("empty"), "train")
    (city / "gtFine").rename(city / "gtCoarse")
    with pytest.raises(InputError, match="got no gtFine/val; unpack"):
        cityscapes(city, "val")


def test_files_between_the_folders(city):
    (city / "leftImg8bit" / "val" / "lindau" / "notes.txt").write_text("")
    assert len(cityscapes(city, "val")) == 1
    (city / "leftImg8bit" / "val" / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"folders of cities alone in .*notes.txt"):
        cityscapes(city, "val")


def test_no_images(city):
    for file in (city / "leftImg8bit" / "val" / "lindau").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"expected images of Cityscapes \(val\), got none"):
        cityscapes(city, "val")


def test_broken_and_mismatched_files(city):
    file = label_file(city)
    save(file, numpy.zeros((5, 12), numpy.uint8))
    with pytest.raises(InputError, match=f"expected {file} to have the 6x12 pixels of .*, got 5x12; replace"):
        cityscapes(city, "val")[0]
    save(file, numpy.zeros((6, 12, 3), numpy.uint8))
    with pytest.raises(InputError, match=f"expected {file} to have 8 bits a pixel, .* mode 'RGB'; give"):
        cityscapes(city, "val")[0]
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(InputError, match=f"expected {file} to be a readable label image"):
        cityscapes(city, "val")[0]
    image = cityscapes(city, "val").images[0]
    with open(image, "wb") as broken:
        broken.write(b"no image")
    with pytest.raises(InputError, match=f"expected {image} to be a readable image"):
        cityscapes(city, "val")[0]


def test_unknown_arguments(city):
    with pytest.raises(InputError, match="got 'test' and 'raw'"):
        cityscapes(city, "test")
    with pytest.raises(InputError, match="got 'val' and 'colour'"):
        cityscapes(city, "val", "colour")


@pytest.fixture
def camvid_folder(tmp_path):
    """Write two images of CamVid's test split, with every id; return the folder."""
    values = numpy.arange(12, dtype=numpy.uint8).reshape(3, 4)
    for name in ("0001TP_b.png", "0001TP_a.png"):
        save(tmp_path / "test" / name, numpy.zeros((3, 4, 3), numpy.uint8))
        save(tmp_path / "testannot" / name, values)
    return tmp_path


def test_camvid(camvid_folder):
    data = camvid(camvid_folder, "test")
    assert [file[-5:] for file in data.images] == ["a.png", "b.png"]
    assert data[0][1].flatten().tolist() == [*range(11), 255]
    assert (data.class_names[0], data.class_names[3], data.class_names[10]) == ("sky", "road", "bicyclist")
    assert len(data.class_names) == 11


def test_camvid_with_files_that_do_not_fit(camvid_folder):
    file = camvid_folder / "testannot" / "0001TP_a.png"
    save(file, numpy.full((3, 4), 12, numpy.uint8))
    with pytest.raises(InputError, match=rf"expected {file} to hold the ids 0-11 of CamVid \(test\), got 12; check"):
        camvid(camvid_folder, "test")[0]
    save(file, numpy.zeros((4, 4), numpy.uint8))
    with pytest.raises(InputError, match=f"expected {file} to have the 3x4 pixels of .*0001TP_a.png, got 4x4; replace"):
        camvid(camvid_folder, "test")[0]
    file.unlink()
    with pytest.raises(InputError, match=rf"each of the 2 images of CamVid \(test\), got none at {file} and 0 others"):
        camvid(camvid_folder, "test")
    with pytest.raises(InputError, match=r"expected the folder .*train of CamVid, got none"):
        camvid(camvid_folder, "train")
