"""Several real processes with gloo: everyone holds what one process on the union of the batches holds."""

import copy
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("numpy")
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from backpass.errors import InputError, StateError
from backpass.sgs import SpatialGradientScaling, alpha_beta_scaling, measure_scalings, scalable_convs
from backpass.sgs.dependence import Autocorrelation
from backpass.sgs.distributed import computing_device, local_part
from backpass.sgs.measuring import scalings_of_maps

GOLDEN = np.load(Path(__file__).parents[1] / "reference" / "golden_sgs_near_equal.npz")

# torch 2.6 shards on GPUs alone: there, CPU streams lack what FSDP2 calls.
SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")
sharding = pytest.mark.skipif(not SHARDS_ON_CPU, reason="this torch has FSDP2 on GPUs alone")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def batches_of(rank: int, world_size: int) -> list[torch.Tensor]:
    """Uneven on purpose: rank r has r + 1 batches, of sizes that differ."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(3 + rank + i, 3, 8, 8, generator=generator) * (1 + rank) for i in range(rank + 1)]


def union(world_size: int) -> list[torch.Tensor]:
    return [batch for rank in range(world_size) for batch in batches_of(rank, world_size)]


KINDS = {
    "mutual information": {},
    "without near-equal pairs": {"drop_near_equal": True},
    "autocorrelation": {"measure": "autocorrelation"},
}

Check = Callable[[int, int], dict]
Results = dict[str, list[dict]]


def run(checks: Sequence[Check], world_size: int, folder: Path) -> Results:
    """Run each ``check(rank, world_size)`` in real processes and return, by its name, what every rank returned."""
    mp.spawn(_worker, (checks, world_size, str(folder)), nprocs=world_size)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    return {check.__name__: [rank[check.__name__] for rank in ranks] for check in checks}


def _worker(rank: int, checks: Sequence[Check], world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    try:
        torch.save({check.__name__: check(rank, world_size) for check in checks}, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a process that takes Python down while they still run


# All checks in one start of the processes, since starting them takes longer than the checks.


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Results:
    checks = [
        measure_under_ddp,
        measure_in_a_group,
        golden_near_equal,
        *([train_fsdp2, uneven_fsdp2] if SHARDS_ON_CPU else []),
        failing_rank,
        rank_without_batches,
        nan_on_one_rank,
        cut_kernel,
        zero_of_adamw,
    ]
    return run(checks, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Results:
    return run([measure_under_ddp, *([train_fsdp2] if SHARDS_ON_CPU else [])], 4, tmp_path_factory.mktemp("four"))


@pytest.fixture(params=["two", "four"])
def world(request) -> tuple[int, Results]:
    return {"two": 2, "four": 4}[request.param], request.getfixturevalue(request.param)


def measure_under_ddp(rank: int, world_size: int) -> dict:
    model = DistributedDataParallel(make_model())
    result = {}
    for kind, options in KINDS.items():
        sgs = SpatialGradientScaling(model, **options)  # type: ignore[arg-type]
        sgs.update(batches_of(rank, world_size))
        result[kind] = sgs.scalings
    return result


def test_every_process_holds_the_scalings_of_the_union(world):
    world_size, results = world[0], world[1]["measure_under_ddp"]
    for kind, options in KINDS.items():
        single = SpatialGradientScaling(make_model(), **options)
        single.update(union(world_size))
        for result in results:
            assert result[kind].keys() == single.scalings.keys()
            for name, scaling in single.scalings.items():
                assert torch.equal(result[kind][name], results[0][kind][name])
                if kind != "autocorrelation":
                    assert torch.equal(result[kind][name], scaling)
                else:  # sums of floats depend on their order
                    torch.testing.assert_close(result[kind][name], scaling)
    alone = SpatialGradientScaling(make_model())
    alone.update(batches_of(0, world_size))
    assert not torch.equal(alone.scalings["0.weight"], results[0]["mutual information"]["0.weight"])


def measure_in_a_group(rank: int, world_size: int) -> dict:
    group = [dist.new_group([own]) for own in range(world_size)][rank]
    sgs = SpatialGradientScaling(make_model(), process_group=group)
    sgs.update(batches_of(rank, world_size))
    return sgs.scalings


def test_only_the_processes_of_the_group_measure_together(two):
    for rank, result in enumerate(two["measure_in_a_group"]):
        alone = SpatialGradientScaling(make_model())
        alone.update(batches_of(rank, 2))
        torch.testing.assert_close(result, alone.scalings, rtol=0, atol=0)


def golden_near_equal(rank: int, world_size: int) -> dict:
    cases = {}
    for case in range(5):
        kh, kw, ph, pw, k = GOLDEN[f"meta{case}"].tolist()
        x = torch.from_numpy(GOLDEN[f"x{case}"])
        conv = nn.Conv2d(x.shape[1], 1, (int(kh), int(kw)), padding=(int(ph), int(pw)))
        mine = x[rank::world_size].split(2)
        cases[str(case)] = measure_scalings(conv, mine, k=k, drop_near_equal=True).scalings["weight"]
    return cases


def test_processes_without_near_equal_pairs_equal_the_published_estimator(two):
    for result in two["golden_near_equal"]:
        for case, scaling in result.items():
            np.testing.assert_allclose(scaling.numpy(), GOLDEN[f"G{case}"], rtol=0, atol=1e-6)


def train_a_step(
    model: nn.Module, whole: torch.Tensor, part: slice, apply: str, sgs_on: nn.Module | None = None
) -> None:
    sgs = SpatialGradientScaling(sgs_on or model, apply=apply)  # type: ignore[arg-type]
    sgs.update([whole[part]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sgs.attach(optimizer)
    for _ in range(3):
        model(whole[part]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def step_adamw(make: Callable[..., torch.optim.Optimizer], attach: bool) -> torch.Tensor:
    """Return the first kernel after steps with decay whose update is scaled."""
    model = make_model()
    sgs = SpatialGradientScaling(model, apply="update", scaling=alpha_beta_scaling(10, 10))
    optimizer = make(model.parameters())
    if attach:
        sgs.attach(optimizer)
    for batch in batches_of(1, 2):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        with nullcontext() if attach else sgs.scaled_update():
            optimizer.step()
    return model[0].weight.detach()


adamw = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1)


def zero_of_adamw(rank: int, world_size: int) -> dict:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    zero = partial(ZeroRedundancyOptimizer, optimizer_class=torch.optim.AdamW, lr=0.1, weight_decay=0.1)
    return {"context": step_adamw(zero, attach=False), "attached": step_adamw(zero, attach=True)}


def test_zero_redundancy_decays_once_on_every_process(two):
    assert not torch.equal(step_adamw(adamw, attach=True), step_adamw(partial(adamw, weight_decay=0), attach=True))
    for result in two["zero_of_adamw"]:
        for kernel in result.values():
            torch.testing.assert_close(kernel, step_adamw(adamw, attach=False), rtol=0, atol=0)


def images() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def without_norm() -> nn.Module:
    return nn.Sequential(*[layer for layer in make_model() if not isinstance(layer, nn.BatchNorm2d)])


def train_fsdp2(rank: int, world_size: int) -> dict:
    from torch.distributed.fsdp import fully_shard

    each = 8 // world_size
    result = {}
    for apply in ("gradient", "update"):
        model = without_norm()
        early = SpatialGradientScaling(model)  # made before sharding replaces the parameters
        fully_shard(model)
        train_a_step(model, images(), slice(rank * each, (rank + 1) * each), apply)
        result[apply] = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
        model(images()).sum().backward()
        plain = {name: p.grad.full_tensor().clone() for name, p in model.named_parameters()}
        early.update([images()])
        early.scale_gradients()
        scaled = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        result[apply]["ratio"] = scaled["0.weight"] / plain["0.weight"]
        result[apply]["scaling"] = early.scalings["0.weight"]
    return result


@sharding
def test_fsdp2_equals_the_unsharded_model(world):
    results = world[1]["train_fsdp2"]
    for apply in ("gradient", "update"):
        plain = without_norm()
        train_a_step(plain, images(), slice(None), apply)
        untrained = without_norm().state_dict()
        for result in results:
            ratio, scaling = result[apply]["ratio"], result[apply]["scaling"]
            torch.testing.assert_close(ratio, scaling.expand_as(ratio))
            for name, parameter in plain.named_parameters():
                torch.testing.assert_close(result[apply][name], parameter.detach())
                assert not torch.equal(result[apply][name], untrained[name])


def uneven_fsdp2(rank: int, world_size: int) -> dict:
    from torch.distributed.fsdp import fully_shard

    model = without_norm()
    fully_shard(model)
    return measure_scalings(model, batches_of(rank, world_size)).scalings


@sharding
def test_fsdp2_with_different_numbers_of_batches_does_not_hang(two):
    results = two["uneven_fsdp2"]
    single = measure_scalings(without_norm(), union(2)).scalings
    for result in results:
        assert all(torch.equal(result[name], scaling) for name, scaling in single.items())


def failing_rank(rank: int, world_size: int) -> dict:
    return failing([torch.randn(2, 3 if rank == 0 else 5, 8, 8)])


def rank_without_batches(rank: int, world_size: int) -> dict:
    return failing([torch.randn(2, 3, 8, 8)] if rank == 0 else [])


def failing(batches: list[torch.Tensor]) -> dict:
    sgs = SpatialGradientScaling(make_model())
    try:
        sgs.update(batches)
    except (InputError, StateError) as error:
        return {"type": type(error).__name__, "text": str(error), "scaling": sgs.scalings["0.weight"]}
    return {}


def test_a_failure_on_one_process_reaches_all(two):
    first, second = two["failing_rank"]
    assert first["type"] == "StateError"
    assert "measuring failed on another process" in first["text"]
    assert second["type"] == "InputError"
    assert "the model failed on measuring batch 0 (tensor of shape (2, 5, 8, 8))" in second["text"]
    assert torch.equal(first["scaling"], torch.ones(3, 3))


def test_a_process_without_batches_leaves_none_waiting(two):
    first, second = two["rank_without_batches"]
    assert first["type"] == "StateError"
    assert second["type"] == "InputError"
    assert second["text"] == "expected at least one measuring batch, got none; pass a loader that is not exhausted"


def nan_on_one_rank(rank: int, world_size: int) -> dict:
    batch = batches_of(0, 2)[0]
    if rank == 1:
        batch[0, 0, 0, 0] = torch.nan
    return {"not_finite": list(measure_scalings(make_model(), [batch]).not_finite)}


def test_nan_on_one_process_is_seen_by_all(two):
    for result in two["nan_on_one_rank"]:
        assert "0.weight" in result["not_finite"]


def cut_kernel(rank: int, world_size: int) -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world_size,))
    kernel = torch.randn(4, 2, 4, 3)
    texts = {}
    for dim in (0, 1, 2):
        try:
            texts[str(dim)] = str(tuple(local_part(distribute_tensor(kernel, mesh, [Shard(dim)]), "conv.weight").shape))
        except InputError as error:
            texts[str(dim)] = str(error)
    return texts


def test_a_layout_that_cuts_the_kernel_is_refused(two):
    for texts in two["cut_kernel"]:
        assert texts["0"] == "(2, 2, 4, 3)"
        assert "expected conv.weight to be replicated or sharded on dim 0, got (Shard(dim=2),)" in texts["2"]
        assert "Shard(dim=1)" in texts["1"]


def test_shards_on_the_cpu_are_computed_with_on_the_device_of_their_mesh(monkeypatch):
    """As under FSDP2 with ``CPUOffloadPolicy``; a real one needs a GPU."""
    mesh = SimpleNamespace(device_type="meta")

    class Offloaded(nn.Parameter):
        device_mesh = mesh

    layer = next(iter(scalable_convs(nn.Conv2d(1, 1, 3)).values()))
    layer.owner._parameters["weight"] = Offloaded(torch.ones(1, 1, 3, 3))
    assert computing_device(layer.parameter) == torch.device("cpu")
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", SimpleNamespace(DTensor=Offloaded))
    assert computing_device(layer.parameter) == torch.device("meta")
    mesh.device_type = "cpu"
    assert computing_device(layer.parameter) == torch.device("cpu")
    mesh.device_type = "meta"

    devices = []

    class Statistics(Autocorrelation):
        def __init__(self, kernel_size, channels, *, device):
            devices.append(device)
            super().__init__(kernel_size, channels)

    scalings_of_maps(lambda visit: None, {"weight": layer}, Statistics, k=5.0)
    assert devices == [torch.device("meta")]


def test_flat_parameter_fsdp_is_refused_by_name():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(InputError, match=r"FullyShardedDataParallel \(FSDP1\) flattens kernels.*fully_shard"):
        SpatialGradientScaling(FullyShardedDataParallel(make_model()))


def test_one_process_needs_no_distributed():
    assert not dist.is_initialized()
    model = make_model()
    reference = copy.deepcopy(model)
    assert measure_scalings(model, union(2)).scalings.keys() == {"0.weight", "3.weight"}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
