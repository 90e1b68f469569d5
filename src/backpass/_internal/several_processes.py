"""Whether several processes work together."""

import torch.distributed as dist

__all__ = ["ProcessGroup", "several_processes"]

ProcessGroup = dist.ProcessGroup | None


def several_processes(group: ProcessGroup = None) -> bool:
    """Return whether several processes work together; also where PyTorch was built without ``torch.distributed``."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
