"""Segmentation, with batches and outputs that are dictionaries. `# backpass` marks changes."""

import torch

import backpass  # backpass


class Segmenter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Conv2d(8, 4, 3, padding=2, dilation=2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.head(self.backbone(image).relu())}


torch.manual_seed(0)
loader = [{"image": torch.randn(2, 3, 16, 16), "mask": torch.randint(4, (2, 16, 16))} for _ in range(4)]
model = Segmenter()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
sgs = backpass.SpatialGradientScaling(model)  # backpass

for epoch in range(2):
    sgs.start_epoch(epoch, loader, forward="image")  # backpass: the input's name in a batch
    for batch in loader:
        loss = torch.nn.functional.cross_entropy(model(batch["image"])["out"], batch["mask"], ignore_index=255)
        loss.backward()
        sgs.scale_gradients()  # backpass
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
