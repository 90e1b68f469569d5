import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

RANK = textwrap.dedent(
    """
    import sys
    import torch, torch.distributed as dist
    from torch import nn
    from backpass.reparam import DyRep
    from reference.reparam_cases import Residual, images, randomise

    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = randomise(Residual())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dyrep = DyRep(model, optimizer, metric="snip")
    torch.manual_seed(rank)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for event in range(2):
        for step in range(2):
            optimizer.zero_grad()
            wrapped(images(4, 3, 9, 9, seed=10 * rank + step)).square().mean().backward()
            dyrep.record()
            optimizer.step()
        dyrep.adjust([images(4, 3, 9, 9, seed=50 + rank)])
        wrapped = nn.parallel.DistributedDataParallel(model)
    parts = [tensor.flatten().double() for name, tensor in model.state_dict().items() if "branches" in name]
    mine = torch.cat(parts)
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert len(mine) > 1000 and torch.equal(*both), (both[0] - both[1]).abs().max()
    dist.destroy_process_group()
    """
)


@pytest.mark.slow
def test_all_processes_grow_the_same_branches(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], env=environment, stderr=-1)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
