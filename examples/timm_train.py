"""The loop of timm's train.py, with its task, loss scaler, accumulation and clipping. `# backpass` marks changes."""

import timm.optim
import torch
from timm.task import ClassificationTask

import backpass  # backpass
from backpass.integrations.timm import ScalingLossScaler  # backpass

torch.manual_seed(0)
loader = [(torch.randn(8, 3, 32, 32), torch.randint(10, (8,))) for _ in range(4)]
model = timm.create_model("resnet10t", num_classes=10)
criterion = backpass.PowerGradCrossEntropyLoss(alpha=0.25)  # backpass: instead of CrossEntropyLoss()
task = ClassificationTask(model, criterion=criterion, verbose=False)
optimizer = timm.optim.create_optimizer_v2(model, opt="momentum", lr=0.05, weight_decay=1e-4)
sgs = backpass.SpatialGradientScaling(model)  # backpass
loss_scaler = ScalingLossScaler(sgs, "cpu", enabled=False)  # backpass: instead of NativeScaler()

for epoch in range(2):
    sgs.start_epoch(epoch, loader)  # backpass
    for number, (x, y) in enumerate(loader, start=1):
        loss = task(x, y)["loss"] / 2
        need_update = number % 2 == 0
        loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters(), need_update=need_update)
        if need_update:
            optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
