import gzip
import json
from dataclasses import replace

import pytest

from backpass.errors import InputError
from backpass.experiments import read_record, read_records, records_at
from backpass.experiments.environment import environment
from backpass.experiments.serialization import to_json
from backpass.training.recipe import Recipe, Runtime
from backpass.training.traces import Traces

RECIPE = Recipe(epochs=2)


def test_the_accuracy_is_that_of_the_last_epoch(make_record):
    record = make_record(RECIPE, "plain", 0, [0.9, 0.7], seconds=1.5)
    assert (record.score, record.seconds) == (0.7, 3.0)
    assert record.by_epoch("accuracy") == [0.9, 0.7]
    assert make_record(RECIPE, "plain", 0, [0.6], split="validation").score == 0.6


def test_round_trip(tmp_path, make_record):
    traces = Traces(
        scalings={0: {"conv.weight": [[1.0, 2.0]]}, 10: {"conv.weight": [[0.5, 1.5]]}},
        kernels={2: {"conv.weight": [[0.01, 2e-7]]}},
        norm_weights={"norm.weight": [0.5] * 11},
        reliability={"": [[1.0, 2.0], [0.5, 0.25], [0.5, 1.0]]},
    )
    record = make_record(RECIPE, "plain", 0, [0.9], entry="a")
    record = replace(record, scalings={"conv.weight": [[1.0, 2.0]]}, traces=traces)
    (tmp_path / "a").mkdir()
    record.write(tmp_path / "a" / "result.json")
    assert read_records(tmp_path) == read_records(str(tmp_path)) == [record]


def test_a_record_without_traces_is_read(tmp_path, make_record):
    content = json.loads(to_json(make_record(RECIPE, "plain", 0, [0.9])))
    del content["traces"]
    del content["environment"]["runtime"]["traces"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    record = read_record(tmp_path / "result.json")
    assert record.traces == Traces()
    assert record == make_record(RECIPE, "plain", 0, [0.9])


def test_a_record_with_an_evaluation_every_few_epochs(tmp_path, make_record):
    record = make_record(RECIPE, "plain", 0, [0.7, 0.8, 0.9])
    del record.history[1]["test_accuracy"]
    record.write(tmp_path / "result.json")
    found = read_record(tmp_path / "result.json")
    assert (found, found.by_epoch("accuracy"), found.score) == (record, [0.7, 0.9], 0.9)
    del record.history[2]["test_accuracy"]
    record.write(tmp_path / "result.json")
    with pytest.raises(InputError, match="expected test_accuracy of epoch 2 to be a finite number, got None; run it"):
        read_record(tmp_path / "result.json")


def test_a_folder_without_records(tmp_path):
    with pytest.raises(InputError, match=r"expected run folders with a result\.json below .*, found none"):
        read_records(tmp_path)
    with pytest.raises(InputError, match=r"expected a readable record at .*No such file"):
        read_record(tmp_path / "result.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_without_records(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    with pytest.raises(InputError, match=rf"expected a record in each line of .*{name}, got an empty file; check"):
        records_at(tmp_path / name)


@pytest.mark.parametrize(
    ("keys", "value", "text"),
    [
        (("run", "seed"), "0", "run.seed = '0' (Input should be a valid integer)"),
        (("run", "seed"), True, "run.seed = True (Input should be a valid integer)"),
        (("data", "split"), "train", "data.split = 'train'"),
        (("cost", "gpu_hours"), "1", "cost.gpu_hours = '1'"),
        (("environment",), None, "environment = None"),
        (("history",), [], "expected a history with a record for each epoch, got none"),
        (("history", 1, "test_accuracy"), None, "history.1.test_accuracy = None"),
        (("history", 0), {}, "expected epoch of epoch 0 to be a finite number, got None"),
        (("data", "split"), "validation", "expected validation_accuracy of epoch 1 to be a finite number, got None"),
        (("scalings",), {"a": [[1.0, 2.0], [1.0]]}, "expected scalings of 'a' to be nested lists of finite numbers"),
        (("scalings",), {"a": [[1.0], 2.0]}, "all of one length at each depth, got [[1.0], 2.0]; run it again"),
        (("scalings",), {"a": [1.0, "x"]}, "expected scalings of 'a' to be"),
        (("traces", "kernels"), {"0": {"a": [[1.0, 2.0], [1.0]]}}, "expected traces.kernels.0 of 'a' to be"),
        (("schema",), 2, "expected a record of schema 3, got schema 2"),
        (("model", "flops"), 1, "model.flops = 1 (Unexpected keyword argument)"),
    ],
)
def test_what_is_wrong_in_a_record_is_named(keys, value, text, make_record, tmp_path):
    content = json.loads(to_json(make_record(RECIPE, "plain", 0, [0.5, 0.6])))
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    read_record(path)
    *outer, last = keys
    section = content
    for key in outer:
        section = section[key]
    section[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_record(path)
    assert str(error.value).startswith(f"{path}: ")
    assert text in str(error.value)


def test_environment_names_versions_and_hardware():
    found = environment(Runtime(device="cpu"))
    assert found.versions["torch"]
    assert found.cpu
    assert found.threads >= 1
    assert found.runtime == Runtime(device="cpu")


def test_records_behind_links_to_folders_are_read_once(tmp_path, make_record):
    record = make_record(RECIPE, "plain", 0, [0.9])
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    record.write(tmp_path / "elsewhere" / "run" / "result.json")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "a").symlink_to(tmp_path / "elsewhere" / "run")
    (tmp_path / "study" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "study")
    assert read_records(tmp_path / "study") == [record]
