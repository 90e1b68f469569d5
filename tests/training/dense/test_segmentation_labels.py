import pytest
import torch

from backpass._internal.random_state import seeded
from backpass.training.dense.segmentation import SemanticSegmentation

TASK = SemanticSegmentation(num_classes=3, crop_height=9, crop_width=9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype_train_as_int64(dtype, training):
    image = torch.randint(0, 256, (3, 11, 12), dtype=torch.uint8)
    labels = torch.randint(0, 3, (11, 12))
    labels[0] = 255
    prepared = []
    for given in (labels, labels.to(dtype)):
        with seeded(0):
            prepared.append(TASK.prepare((image, given), training))
    (expected_image, expected), (found_image, found) = prepared
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)
    assert torch.equal(found_image, expected_image)
    logits = torch.randn(1, 3, *found.shape)
    assert TASK.loss(logits, found[None]).isfinite()
