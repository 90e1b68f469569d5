"""Detection, with torchvision's lists of images and targets. `# backpass` marks changes."""

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

import backpass  # backpass

torch.manual_seed(0)
target = {"boxes": torch.tensor([[4.0, 4.0, 28.0, 28.0]]), "labels": torch.tensor([1])}
loader = [([torch.rand(3, 48, 48)] * 2, [target] * 2) for _ in range(2)]
backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, stride=4, padding=1), torch.nn.ReLU())
backbone.out_channels = 16
model = FasterRCNN(backbone, num_classes=2, min_size=48, max_size=48, rpn_anchor_generator=AnchorGenerator(((16,),)))
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.005, momentum=0.9)
sgs = backpass.SpatialGradientScaling(model)  # backpass

for epoch in range(2):
    sgs.start_epoch(epoch, loader, forward=lambda batch: model(batch[0]))  # backpass: images alone, in eval mode
    for images, targets in loader:
        loss = sum(model(images, targets).values())
        loss.backward()
        sgs.scale_gradients()  # backpass
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
