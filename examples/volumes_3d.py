"""A 3-D net on generated volumes. `# backpass` marks changes."""

import torch

import backpass  # backpass

torch.manual_seed(0)
loader = [(torch.randn(4, 2, 8, 8, 8).cumsum(-1), torch.randint(3, (4,))) for _ in range(4)]
model = torch.nn.Sequential(
    torch.nn.Conv3d(2, 8, 5, padding=2),
    torch.nn.ReLU(),
    torch.nn.Conv3d(8, 8, 3, groups=8),
    torch.nn.AdaptiveAvgPool3d(1),
    torch.nn.Flatten(),
    torch.nn.Linear(8, 3),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
sgs = backpass.SpatialGradientScaling(model)  # backpass

for epoch in range(2):
    sgs.start_epoch(epoch, loader)  # backpass
    for x, y in loader:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        sgs.scale_gradients()  # backpass
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
