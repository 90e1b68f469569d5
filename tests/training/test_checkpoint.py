import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from backpass.errors import InputError
from backpass.training.checkpoint import atomic_write, load_checkpoint, save_checkpoint, save_weights


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"a": torch.arange(3), "b": [1, {"c": "d"}]})
    state = load_checkpoint(tmp_path / "c.pt")
    assert state["b"] == [1, {"c": "d"}]
    assert torch.equal(state["a"], torch.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("must-not-exist",)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, dump in (
        (tmp_path / "a.pt", torch.save),
        (tmp_path / "b.pt", lambda o, p: p.write_bytes(pickle.dumps(o))),
    ):
        dump({"model": Malicious()}, path)
        with pytest.raises(InputError, match=rf"{path.name} is not a readable checkpoint"):
            load_checkpoint(path)
    assert not (tmp_path / "must-not-exist").exists()


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"expected a checkpoint at .*gone\.pt, found none"):
        load_checkpoint(tmp_path / "gone.pt")
    save_checkpoint(tmp_path / "cut.pt", {"a": torch.arange(1000)})
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.pt is not a readable checkpoint"):
        load_checkpoint(tmp_path / "cut.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"


def test_weights_of_shared_tensors(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_weights(tmp_path / "m.safetensors", net.state_dict())
    loaded = load_file(tmp_path / "m.safetensors")
    assert torch.equal(loaded["1.weight"], net[0].weight)
    net.load_state_dict(loaded, strict=True)
