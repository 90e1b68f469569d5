import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from backpass.errors import BackpassWarning, InputError
from backpass.training.checkpoint import (
    Checkpoints,
    atomic_write,
    load_checkpoint,
    remove_temporaries,
    save_checkpoint,
    save_weights,
)


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"a": torch.arange(3), "b": [1, {"c": "d"}]})
    state = load_checkpoint(tmp_path / "c.pt")
    assert state["b"] == [1, {"c": "d"}]
    assert torch.equal(state["a"], torch.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_path_may_be_text(tmp_path):
    save_checkpoint(f"{tmp_path}/c.pt", {"a": 1})
    assert load_checkpoint(f"{tmp_path}/c.pt") == {"a": 1}


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


def test_torch_reads_a_checkpoint_without_us(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"a": torch.arange(3), "b": [1.5]})
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert state["b"] == [1.5]
    assert torch.equal(state["a"], torch.arange(3))


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"a": torch.arange(100.0), "b": [1, "x"]})
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(content), (400,), generator=generator).tolist()
    for place in [0, len(content) - 1, *places]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="to hold what was written, as by its checksum, got other bytes"):
            load_checkpoint(path)
    path.write_bytes(content)
    assert load_checkpoint(path)["b"] == [1, "x"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_good_checkpoint_is_kept_and_used(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for epoch in range(3):
        checkpoints.save({"epoch": epoch})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint.previous.pt"}
    assert checkpoints.load() == {"epoch": 2}
    damage(checkpoints.newest)
    again = Checkpoints(tmp_path)
    with pytest.warns(
        BackpassWarning, match=r"checkpoint\.pt to hold .*; the run resumes from checkpoint\.previous\.pt"
    ):
        assert again.load() == {"epoch": 1}
    again.save({"epoch": 2})
    assert load_checkpoint(again.newest) == {"epoch": 2}
    assert load_checkpoint(again.previous) == {"epoch": 1}, "the damaged one must not take its place"
    again.save({"epoch": 3})
    assert load_checkpoint(again.previous) == {"epoch": 2}


def test_a_kill_while_the_files_change_places_loses_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"epoch": 0})
    checkpoints.newest.replace(checkpoints.previous)
    assert checkpoints.load() == {"epoch": 0}


def test_two_damaged_checkpoints_are_an_error_that_says_what_to_do(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"epoch": 0})
    damage(checkpoints.newest)
    with pytest.raises(InputError, match=r"checkpoint\.pt .*got other bytes; remove it to start the run again"):
        checkpoints.load()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"epoch": 0})
    checkpoints.save({"epoch": 1})
    damage(checkpoints.newest)
    damage(checkpoints.previous)
    with pytest.raises(InputError, match=r"checkpoint\.pt .*; .*previous\.pt .*; remove them to start the run again"):
        checkpoints.load()


def test_temporary_files_are_removed_and_no_others(tmp_path):
    kept = [".lock", ".x", "checkpoint.pt", "a." + "0" * 32, ".a." + "0" * 31]
    for name in [*kept, ".checkpoint.pt." + "0a" * 16]:
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_every_file_has_the_mode_of_a_new_file(umask, tmp_path):
    before = os.umask(umask)
    try:
        for name, write in WRITERS.items():
            write(tmp_path / name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)
