"""A user's own task, model and data set, which recipes name by their import paths.

The task has two heads, inputs and targets that are dictionaries, and binary cross-entropy: which thirds of an image are
bright, and whether any is. A second set of task, model and data has integers as input.
"""

import random
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from backpass.training import Classification, ItemData, Task


class Stripes(Dataset):
    def __init__(self, count, side=9):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        third = self.side // 3
        bright = torch.tensor([index >> bit & 1 for bit in range(3)]).float()
        image = torch.rand(1, self.side, self.side, generator=generator) + bright.repeat_interleave(third)[:, None]
        return {"image": image}, {"thirds": bright, "any": bright.max()}


def stripes(train=48, test=16):
    return ItemData("own stripes", Stripes(train), Stripes(test), num_classes=3, input_size=(1, 9, 9))


class TwoHeads(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.thirds, self.any = nn.Linear(36, num_classes), nn.Linear(36, 1)

    def forward(self, inputs):
        x = F.adaptive_avg_pool2d(self.norm(self.conv(inputs["image"])).relu(), 3).flatten(1)
        return {"thirds": self.thirds(x), "any": self.any(x).squeeze(1)}


def two_heads(num_classes=3, in_channels=1):
    return TwoHeads(num_classes, in_channels)


class Shares:
    def __init__(self, device):
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, output, target):
        right = ((output["thirds"] > 0) == (target["thirds"] > 0.5)).all(1)
        self.sums += torch.stack([right.sum(), torch.tensor(len(right), device=right.device)])

    def compute(self, total):
        right, count = total(self.sums).tolist()
        return {"exact_match": right / count}


@dataclass(frozen=True)
class BrightThirds(Task):
    any_weight: float = 0.5

    metric = "exact_match"
    loss_kind = "binary_cross_entropy"

    def loss(self, output, target, criterion=None):
        criterion = criterion or F.binary_cross_entropy_with_logits
        heads = {name: criterion(output[name], target[name]) for name in ("thirds", "any")}
        return heads["thirds"] + self.any_weight * heads["any"]

    def evaluation(self, device, alpha=None):
        return Shares(device)

    def example(self, data):
        return {"image": torch.zeros(1, *data.input_size)}


@dataclass(frozen=True)
class Smoothed(BrightThirds):
    label_smoothing: float = 0.2


class Unpaired(BrightThirds):
    def prepare(self, item, training):
        return item[0]["image"]


class Tokens(Classification):
    def example(self, data):
        return torch.zeros(1, *data.input_size, dtype=torch.int64)


class TokenNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding, self.conv, self.linear = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3), nn.Linear(4, num_classes)

    def forward(self, tokens):
        return self.linear(self.conv(self.embedding(tokens).mT).relu().mean(2))


def token_net(num_classes=2, in_channels=1):
    return TokenNet(num_classes)


def tokens():
    split = TensorDataset(torch.arange(64).view(8, 8) % 9, torch.arange(8) % 2)
    return ItemData("own tokens", split, split, num_classes=2, input_size=(8,))


class Noisy(Dataset):
    """Images with noise from NumPy's or Python's global generator."""

    def __init__(self, count, source):
        self.count, self.source = count, source

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = numpy.random.random() if self.source == "numpy" else random.random()
        return torch.full((1, 8, 8), noise), torch.tensor(index % 4)


def noisy(source):
    return ItemData("own noise", Noisy(16, source), Noisy(4, source), num_classes=4, input_size=(1, 8, 8))
