"""A plain loop on scikit-learn's digits. Lines that backpass adds or changes end with `# backpass`."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import backpass  # backpass

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64, shuffle=True)
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 64, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
criterion = backpass.PowerGradCrossEntropyLoss(alpha=0.3)  # backpass: instead of torch.nn.CrossEntropyLoss()
sgs = backpass.SpatialGradientScaling(model)  # backpass

for epoch in range(2):
    sgs.start_epoch(epoch, loader)  # backpass
    losses = []
    for x, y in loader:
        loss = criterion(model(x), y)
        loss.backward()
        sgs.scale_gradients()  # backpass
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"epoch {epoch}: mean loss {sum(losses) / len(losses):.3f}")
