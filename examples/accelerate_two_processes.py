"""Accelerate in two processes, with accumulation, clipping and a checkpoint. `# backpass` marks changes."""

import tempfile

import torch
from accelerate import Accelerator, debug_launcher
from torch.utils.data import DataLoader, TensorDataset

import backpass  # backpass


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(torch.randn(64, 1, 8, 8), torch.randint(10, (64,))), batch_size=8)
    sgs = backpass.SpatialGradientScaling(model)  # backpass
    accelerator.register_for_checkpointing(sgs)  # backpass
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(2):
        sgs.start_epoch(epoch, loader)  # backpass: every process measures, and all hold the same scalings
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    sgs.scale_gradients()  # backpass: before clipping
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
    accelerator.print("centre", sgs.scalings["0.weight"][1, 1].item())


if __name__ == "__main__":
    debug_launcher(main, num_processes=2)
