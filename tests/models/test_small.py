import pytest
import torch
import torch.nn.functional as F

from backpass.models import create_model


def test_any_map_down_to_two_pixels():
    model = create_model("digits_net").eval()
    assert model(torch.zeros(3, 1, 2, 5)).shape == (3, 10)


def test_learns_the_digits_within_seconds():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    model = create_model("digits_net")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        for batch in train[torch.randperm(len(train))].split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model.eval()(x[test]).argmax(1) == y[test]).double().mean().item()
    assert accuracy > 0.9
