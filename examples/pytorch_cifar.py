"""A script in the manner of CIFAR scripts: train() and test(), epochs counted from 1. `# backpass` marks changes."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import backpass  # backpass

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
targets = torch.tensor(digits.target)
trainloader = DataLoader(TensorDataset(images[:1500], targets[:1500]), batch_size=128, shuffle=True)
testloader = DataLoader(TensorDataset(images[1500:], targets[1500:]), batch_size=100)
net = backpass.models.create_model("digits_net", num_classes=10, in_channels=1)
criterion = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
sgs = backpass.SpatialGradientScaling(net)  # backpass


def train(epoch: int) -> None:
    sgs.start_epoch(epoch - 1, trainloader)  # backpass: epochs count from 1 here
    net.train()
    for inputs, labels in trainloader:
        optimizer.zero_grad()
        loss = criterion(net(inputs), labels)
        loss.backward()
        sgs.scale_gradients()  # backpass
        optimizer.step()


def test(epoch: int) -> None:
    net.eval()
    with torch.no_grad():
        correct = sum(int((net(inputs).argmax(1) == labels).sum()) for inputs, labels in testloader)
    print(f"epoch {epoch}: accuracy {100 * correct / 297:.1f} %")


for epoch in range(1, 4):
    train(epoch)
    test(epoch)
    scheduler.step()
