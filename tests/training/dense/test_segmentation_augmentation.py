from functools import partial

import pytest
import torch
import torch.nn.functional as F

from backpass.errors import InputError
from backpass.training.dense.segmentation import SemanticSegmentation
from backpass.training.dense.segmentation_augmentation import SceneDraws, augment_scene, draw_scene

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEMSEG = ((0.5, 2.0), 10.0, 0.5, 0.5, 0.5)
NOTHING = SceneDraws()


def augmentation(*crop):
    return partial(augment_scene, crop=crop)


def scene(height=20, width=28):
    return torch.randint(256, (3, height, width), dtype=torch.uint8), torch.randint(19, (height, width))


def normalized(pixels):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def labelled_image(labels):
    """Return an image whose red channel is its label."""
    return torch.stack([labels.to(torch.uint8)] * 3)


def red(image):
    return (image[0] * STD[0] + MEAN[0]) * 255


def test_without_any_change():
    image, labels = scene()
    out, out_labels = augmentation(20, 28)(image, labels, NOTHING)
    torch.testing.assert_close(out, normalized(image))
    assert torch.equal(out_labels, labels)
    assert type(out) is type(out_labels) is torch.Tensor


def test_the_crop_reaches_every_place():
    image, labels = scene()
    cropped = augmentation(18, 28)
    starts = []
    for row in (0.0, 0.34, 0.67, 0.999):
        out, out_labels = cropped(image, labels, SceneDraws(row=row))
        start = next(y for y in range(3) if torch.equal(labels[y : y + 18], out_labels))
        torch.testing.assert_close(out, normalized(image[:, start : start + 18]))
        starts.append(start)
    assert starts == [0, 1, 2, 2]


def test_small_images_are_padded_with_the_mean_colour_and_255():
    image, labels = scene()
    out, out_labels = augmentation(25, 30)(image, labels, NOTHING)
    expected, expected_labels = torch.zeros(3, 25, 30), torch.full((25, 30), 255)
    expected[:, 2:22, 1:29], expected_labels[2:22, 1:29] = normalized(image), labels
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(out_labels, expected_labels)


@pytest.mark.parametrize("scale", [0.5, 1.37, 2.0])
def test_scale(scale):
    image, labels = scene()
    size = (round(20 * scale), round(28 * scale))
    out, out_labels = augmentation(*size)(image, labels, SceneDraws(scale=scale))
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(out, normalized(resized))
    rows, columns = (torch.arange(n) * m // n for n, m in zip(size, (20, 28), strict=True))
    assert torch.equal(out_labels, labels[rows][:, columns])


def test_flip():
    image, labels = scene()
    out, out_labels = augmentation(20, 28)(image, labels, SceneDraws(flipped=True))
    torch.testing.assert_close(out, normalized(image.flip(-1)))
    assert torch.equal(out_labels, labels.flip(-1))


def test_rotation_turns_image_and_labels_alike_and_fills_with_the_mean_colour_and_255():
    labels = torch.zeros(41, 41, dtype=torch.int64)
    labels[5:12, 5:36] = 9  # a bar near the top
    out, out_labels = augmentation(41, 41)(labelled_image(labels), labels, SceneDraws(angle=10.0))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert out_labels[corner] == 255
        assert out[(slice(None), *corner)].abs().max() < 1e-5
    # Away from every edge of the labels, the image shows the same label.
    values = out_labels[None].float()
    even = (F.max_pool2d(values, 5, 1) == -F.max_pool2d(-values, 5, 1))[0] & (out_labels[2:-2, 2:-2] != 255)
    assert even.sum() > 900
    assert ((red(out) - out_labels).abs()[2:-2, 2:-2][even] < 0.01).all()
    # Counterclockwise: the bar's left end has moved down, its right end up.
    rows = [(out_labels[:, x] == 9).nonzero().float().mean().item() for x in (10, 20, 30)]
    assert rows[0] > rows[1] + 1 > rows[2] + 2
    assert rows[1] == pytest.approx(8.5, abs=1)


def test_rotation_keeps_the_pixel_at_half_height_and_width():
    image, labels = torch.zeros(3, 40, 40, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.int64)
    image[:, 20, 20] = 255
    out, _ = augmentation(40, 40)(image, labels, SceneDraws(angle=10.0))
    assert red(out)[20, 20].item() == pytest.approx(255, abs=0.1)


def test_blur_is_binomial_over_five_pixels_and_on_the_image_alone():
    image, labels = torch.zeros(3, 11, 11, dtype=torch.uint8), torch.zeros(11, 11, dtype=torch.int64)
    image[:, 5, 5], labels[5, 5] = 255, 1
    out, out_labels = augmentation(11, 11)(image, labels, SceneDraws(blurred=True))
    weights = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    expected = torch.zeros(11, 11)
    expected[3:8, 3:8] = 255 * weights[:, None] * weights
    torch.testing.assert_close(red(out), expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(out_labels, labels)


def test_the_order_of_the_steps():
    """Flipping comes after rotating; blurring comes before padding and cropping, and does not touch the border."""
    image, labels = scene(41, 41)
    flat = augmentation(41, 41)
    together = flat(image, labels, SceneDraws(angle=10.0, flipped=True))
    rotated = flat(image, labels, SceneDraws(angle=10.0))
    assert torch.equal(together[0], rotated[0].flip(-1))
    assert torch.equal(together[1], rotated[1].flip(-1))
    assert not torch.equal(together[1], flat(image.flip(-1), labels.flip(-1), SceneDraws(angle=10.0))[1])
    padded, _ = augmentation(45, 41)(image, labels, SceneDraws(blurred=True))
    assert padded[:, :2].abs().max() < 1e-6
    torch.testing.assert_close(padded[:, 2:43], flat(image, labels, SceneDraws(blurred=True))[0])


def test_draws():
    torch.manual_seed(1)
    drawn = [draw_scene(*SEMSEG) for _ in range(2000)]
    scales, angles = torch.tensor([d.scale for d in drawn]), torch.tensor([d.angle for d in drawn])
    assert 0.5 <= scales.min() < 0.51 < 1.99 < scales.max() <= 2
    assert scales.mean().item() == pytest.approx(1.25, abs=0.03)
    turned = angles[angles != 0]
    assert len(turned) / 2000 == pytest.approx(0.5, abs=0.04)
    assert -10 <= turned.min() < -9.9 < 9.9 < turned.max() <= 10
    for name in ("blurred", "flipped"):
        assert sum(getattr(d, name) for d in drawn) / 2000 == pytest.approx(0.5, abs=0.04)
    torch.manual_seed(1)
    assert draw_scene(*SEMSEG) == drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"crop_width": 0}, "crop_width to be an integer >= 1"),
        ({"min_scale": 0.0}, "min_scale to be a finite number > 0"),
        ({"min_scale": 3.0}, "min_scale <= task_args.max_scale, got 3.0 and 2.0; change one"),
        ({"blur_probability": 1.5}, "blur_probability to be a finite number >= 0 and <= 1"),
    ],
)
def test_bad_settings(change, text):
    with pytest.raises(InputError, match=f"expected task_args.{text}"):
        SemanticSegmentation(num_classes=3, **change)
