import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from backpass.errors import InputError
from backpass.training.dense.crop_geometry import crop_matrix, transform_points, warp
from backpass.training.dense.heatmaps import decode_heatmaps, draw_heatmaps
from backpass.training.dense.mpii import MPII_PAIRS, mpii
from backpass.training.dense.person_augmentation import PersonDraws
from backpass.training.dense.person_crops import crop_person
from backpass.training.dense.pose_metrics import PckEvaluation
from training.dense.people import write_mpii

SIZE = (64, 64)
TURNED = PersonDraws(scale=1.2, angle=25.0, mirrored=True)


@pytest.fixture
def root(tmp_path):
    write_mpii(tmp_path)
    return tmp_path


class Crops:
    """The crops of all persons of a split."""

    def __init__(self, persons, **settings):
        self.persons = persons
        self.settings = {"max_value": 255.0, "bgr": False, "cap_side": True, "pairs": MPII_PAIRS, **settings}

    def __getitem__(self, index):
        return self.crop(index, PersonDraws())

    def crop(self, index, draws):
        return crop_person(self.persons[index], draws, **self.settings)


def crops(root, split="valid", **settings):
    return Crops(mpii(root, split), size=SIZE, **settings)


def decoded(file):
    return torch.from_numpy(numpy.array(Image.open(file))).permute(2, 0, 1)


def test_the_crop_and_its_joints(root):
    data = crops(root)
    image, target = data[1]
    person = data.persons.persons[1]
    matrix = crop_matrix(person.center, person.side, SIZE)
    pixels = warp(decoded(person.image), matrix, SIZE)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(image, (pixels / 255 - mean) / std)
    torch.testing.assert_close(target.joints, transform_points(person.joints, matrix))
    assert torch.equal(target.visible, person.visible)


def test_the_input_of_the_published_source(root):
    """BGR over 256, with the means of red, green and blue."""
    data = crops(root, bgr=True, max_value=256.0)
    person = data.persons.persons[0]
    pixels = warp(decoded(person.image), crop_matrix(person.center, person.side, SIZE), SIZE)
    blue = (pixels[2] / 256 - 0.485) / 0.229
    torch.testing.assert_close(data[0][0][0], blue)


def test_the_side_is_capped_at_the_longer_side_of_the_image(tmp_path):
    write_mpii(tmp_path, count=1, size=(80, 90))
    for cap, width in ((True, 90), (False, 100)):
        _, target = crops(tmp_path, cap_side=cap)[0]
        assert target.to_image[0, 0].item() == pytest.approx(width / 64)
        scaled = crops(tmp_path, cap_side=cap).crop(0, PersonDraws(scale=1.25))[1]
        assert scaled.to_image[0, 0].item() == pytest.approx((90 if cap else 125) / 64)  # capped after scaling


@pytest.mark.parametrize("draws", [PersonDraws(), TURNED])
def test_the_way_back_to_the_image(root, draws):
    data = crops(root)
    for index, person in enumerate(data.persons.persons):
        _, target = data.crop(index, draws)
        back = transform_points(target.joints, target.to_image)
        if draws.mirrored:
            order = list(range(16))
            for right, left in MPII_PAIRS:
                order[right], order[left] = left, right
            back = back[order]
        torch.testing.assert_close(back, person.joints, atol=1e-3, rtol=0)


def test_a_mirrored_crop_swaps_left_and_right(root):
    data = crops(root)
    straight, (image, mirrored) = data[0], data.crop(0, PersonDraws(mirrored=True))
    assert torch.equal(image, straight[0].flip(-1))
    assert bool(straight[1].visible[3])  # the left hip,
    assert bool(mirrored.visible[2])  # and where it goes
    torch.testing.assert_close(mirrored.joints[2, 0], 63 - straight[1].joints[3, 0])
    torch.testing.assert_close(mirrored.joints[2, 1], straight[1].joints[3, 1])
    assert not mirrored.visible[15]
    assert not straight[1].visible[10]


def test_perfect_heat_maps_have_a_pckh_of_one(root):
    data = Crops(mpii(root, "valid"), size=(256, 256))
    _, target = default_collate([data[index] for index in range(3)])
    maps = draw_heatmaps(target.joints / 4, target.visible, (64, 64), rounding="nearest")
    found = transform_points(4 * decode_heatmaps(maps).double(), target.to_image)
    evaluation = PckEvaluation(16, torch.device("cpu"))
    evaluation.update(found, target.truth, target.scored, target.size)
    assert evaluation.compute(lambda counts: counts) == {"pckh": 1.0, "pckh_weighted": 1.0}
    wrong = PckEvaluation(16, torch.device("cpu"))
    wrong.update(found + 3, target.truth, target.scored, target.size)
    assert wrong.compute(lambda counts: counts)["pckh"] < 0.5


def test_without_ground_truth_nothing_is_scored(root):
    _, target = crops(root, "train")[0]
    assert not target.scored.any()
    assert target.size == 1


def test_a_broken_image(root):
    data = crops(root)
    file = data.persons.persons[2].image
    with open(file, "wb") as broken:
        broken.write(b"no image")
    with pytest.raises(InputError, match=f"expected {file} to be a readable image"):
        data[2]
