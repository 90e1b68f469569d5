"""Sharpness-aware minimisation: the gradient that makes the step is scaled. `# backpass` marks changes."""

import torch

import backpass  # backpass

torch.manual_seed(0)
loader = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(4)]
model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(512, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
sgs = backpass.SpatialGradientScaling(model)  # backpass

for epoch in range(2):
    sgs.start_epoch(epoch, loader)  # backpass
    for x, y in loader:
        torch.nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():  # climb to the worst point nearby
            norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters())
            steps = [0.05 * p.grad / norm for p in model.parameters()]
            torch._foreach_add_(list(model.parameters()), steps)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():  # back, with the gradient from there
            torch._foreach_sub_(list(model.parameters()), steps)
        sgs.scale_gradients()  # backpass
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
