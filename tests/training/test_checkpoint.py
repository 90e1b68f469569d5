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
    writers = {
        "a.pt": (lambda o, p: save_checkpoint(p, o), "tensors and plain values alone"),
        "b.pt": (torch.save, "its checksum"),
        "c.pt": (lambda o, p: p.write_bytes(pickle.dumps(o)), "its checksum"),
    }
    for name, (dump, text) in writers.items():
        dump({"model": Malicious()}, tmp_path / name)
        with pytest.raises(InputError, match=rf"expected .*{name} to .*{text}"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "must-not-exist").exists()


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"expected a checkpoint at .*gone\.pt, found none"):
        load_checkpoint(tmp_path / "gone.pt")
    save_checkpoint(tmp_path / "cut.pt", {"a": torch.arange(1000)})
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        InputError, match=r"expected .*cut\.pt to hold what was written, as by its checksum, got other bytes"
    ):
        load_checkpoint(tmp_path / "cut.pt")


WRITERS = {
    "atomic_write": lambda path: atomic_write(path, b"new"),
    "save_checkpoint": lambda path: save_checkpoint(path, {"a": torch.arange(3)}),
    "save_weights": lambda path: save_weights(path, {"a": torch.arange(3)}),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt("disk full")])
def test_a_failed_write_leaves_the_old_file_alone(error, writer, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error), match="disk full"):
        WRITERS[writer](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writer", WRITERS)
def test_writers_with_the_same_process_number_do_not_meet(writer, tmp_path, monkeypatch):
    path = tmp_path / "file"
    synced = []

    def write_meanwhile(file):
        (written,) = set(tmp_path.iterdir()) - {path}
        synced.append((written.name, written.stat().st_size))
        written.rename(tmp_path.parent / written.name)
        if len(synced) == 1:
            WRITERS[writer](path)  # as from another container
            assert path.is_file()
        (tmp_path.parent / written.name).rename(written)

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    WRITERS[writer](path)
    (first, size), (second, same_size) = synced
    assert first != second
    assert size == same_size == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_shared_tensors(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_weights(tmp_path / "m.safetensors", net.state_dict())
    loaded = load_file(tmp_path / "m.safetensors")
    assert torch.equal(loaded["1.weight"], net[0].weight)
    net.load_state_dict(loaded, strict=True)
