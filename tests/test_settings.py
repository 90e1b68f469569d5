"""Every setting has its range, and the library, the command line and files give the same message."""

import dataclasses
import json
import math
from types import UnionType
from typing import Annotated, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

from backpass.__main__ import main
from backpass._internal.settings import COUNT, Range, check_number, check_settings
from backpass.cli.commands import Power, Worker
from backpass.cli.studies import Compare
from backpass.errors import InputError
from backpass.experiments.reproduction import Reduction
from backpass.experiments.serialization import from_json
from backpass.experiments.settings import replace_setting
from backpass.training.augment import Augmentation
from backpass.training.recipe import (
    AgcSettings,
    DataSettings,
    DyRepSettings,
    OptimizerSettings,
    PgtSettings,
    Recipe,
    ReparamSettings,
    Run,
    Runtime,
    ScheduleSettings,
    SgsSettings,
)
from backpass.training.stream import StreamAugmentation

GROUPS = {
    "": Recipe,
    "data": DataSettings,
    "optimizer": OptimizerSettings,
    "schedule": ScheduleSettings,
    "sgs": SgsSettings,
    "pgt": PgtSettings,
    "agc": AgcSettings,
    "reparam": ReparamSettings,
    "dyrep": DyRepSettings,
    "augmentation": Augmentation,
    "stream_augmentation": StreamAugmentation,
    "runtime": Runtime,
}


def ranges(kind):
    """Return the range of each field that holds a number, ``None`` where there is none."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
        for part in alternatives:
            own, *metadata = get_args(part) if get_origin(part) is Annotated else (part,)
            if own in (int, float):
                found[name] = next((m for m in metadata if isinstance(m, Range)), None)
    return found


@pytest.mark.parametrize(
    "kind", [*GROUPS.values(), Run, Reduction, Worker, Power, Compare], ids=lambda kind: kind.__name__
)
def test_every_number_has_a_range(kind):
    assert [name for name, limits in ranges(kind).items() if limits is None] == []


def test_the_numbers_are_found():
    assert ranges(OptimizerSettings).keys() == {"lr", "momentum", "weight_decay"}
    assert ranges(DataSettings)["limit_train"] == COUNT
    assert ranges(dataclasses.make_dataclass("Other", [("open", float | None)])) == {"open": None}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", True, 10**400], ids=range(6))
def test_what_is_no_finite_number_is_refused_everywhere(group, value):
    for name in ranges(GROUPS[group]):
        full = f"{group}.{name}".removeprefix(".")
        with pytest.raises(InputError, match=rf"^expected {full} to be (a finite number|an integer)( [<>].*)?, got "):
            GROUPS[group](**{name: value})


OUT_OF_RANGE = [
    ("epochs", 0, "an integer >= 1 and <= 2147483647"),
    ("epochs", 10**30, "an integer >= 1 and <= 2147483647"),
    ("batch_size", -1, "an integer >= 1 and <= 2147483647"),
    ("micro_batches", 0, "an integer >= 1 and <= 2147483647"),
    ("label_smoothing", 1.5, "a finite number >= 0 and <= 1"),
    ("clip_norm", 0.0, "a finite number > 0"),
    ("data.validation", 1.0, "a finite number >= 0 and < 1"),
    ("data.limit_train", 0, "an integer >= 1 and <= 2147483647"),
    ("data.image_size", 0, "an integer >= 1 and <= 8192"),
    ("optimizer.lr", 0.0, "a finite number > 0"),
    ("optimizer.lr", -1.0, "a finite number > 0"),
    ("optimizer.momentum", 1.5, "a finite number >= 0 and < 1"),
    ("optimizer.weight_decay", -1.0, "a finite number >= 0"),
    ("schedule.final_lr", -1.0, "a finite number >= 0"),
    ("schedule.warmup_epochs", -1.0, "a finite number >= 0"),
    ("schedule.cooldown_epochs", -1.0, "a finite number >= 0"),
    ("schedule.step_epochs", 0.0, "a finite number > 0"),
    ("schedule.step_factor", 2.0, "a finite number > 0 and <= 1"),
    ("sgs.k", -1.0, "a finite number > 0"),
    ("sgs.every", 0, "an integer >= 1 and <= 2147483647"),
    ("pgt.alpha", 0.0, "a finite number > 0"),
    ("agc.eps", 0.0, "a finite number > 0"),
    ("dyrep.every", 0, "an integer >= 1 and <= 2147483647"),
    ("augmentation.cutout", -1, "an integer >= 0"),
    ("stream_augmentation.min_scale", 0.0, "a finite number > 0 and <= 1"),
]


@pytest.mark.parametrize(("key", "value", "wanted"), OUT_OF_RANGE)
def test_library_and_files_give_one_message(key, value, wanted):
    text = f"expected {key} to be {wanted}, got {value!r}; choose another value"
    *group, name = key.split(".")
    with pytest.raises(InputError) as error:
        GROUPS[".".join(group)](**{name: value})
    assert str(error.value) == text
    content = {group[0]: {name: value}} if group else {name: value}
    with pytest.raises(InputError) as error:
        from_json(Recipe, json.dumps(content), "config.json")
    assert str(error.value) == (
        f"config.json: expected a Recipe as this version of backpass writes it, got {text}; remove or mend it"
    )


# One of each kind: the command line takes a second to parse.
@pytest.mark.parametrize(("key", "value", "wanted"), [OUT_OF_RANGE[i] for i in (1, 9, 11)])
def test_the_command_line_gives_the_same_message(key, value, wanted, capsys, tmp_path):
    option = f"--{key.replace('_', '-')}"
    assert main(["train", option, str(value), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err == f"backpass: expected {key} to be {wanted}, got {value!r}; choose another value\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--seed", "-1"], "seed to be an integer >= 0 and < 4294967296, got -1"),
        (["train", "--schedule.warmup-epochs", "inf"], "schedule.warmup_epochs to be a finite number >= 0, got inf"),
        (["compare", "--runtime.checkpoint-every", "0"], "runtime.checkpoint_every to be an integer >= 1 and <= "),
        (["compare", "--processes", "-1", "--dry-run"], "processes to be an integer >= 1 and <= 1024, got -1"),
        (["reproduce", "sgs-table-4", "--epochs", "0"], "epochs to be an integer >= 1 and <= 2147483647, got 0"),
        (["worker", "--study", "x", "--heartbeat", "nan"], "heartbeat to be a finite number > 0 and <= 86400.0, got"),
        (["worker", "--study", "x", "--grace", "nan"], "grace to be a finite number > 0 and <= 86400.0, got nan"),
        (["train", "--data.label", "\udcff"], r"every argument to be text in UTF-8, got '\udcff'"),
        (
            ["power", "--spread", "1", "--seeds", "5", "--level", "5e-324"],
            "level to be a finite number >= 1e-09 and < 1",
        ),
        (["search", "sgs.k", "--values", "-1", "--dry-run"], "sgs.k to be a finite number > 0, got -1"),
    ],
)
def test_every_command_refuses_in_one_line_before_it_does_anything(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"backpass: expected {text}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(InputError, match=f"expected seed to be an integer >= 0 and < 4294967296, got {seed}; choose"):
        Run(Recipe(), seed=seed)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: OptimizerSettings(name="lion"), "optimizer.name to be one of sgd, adadelta, .*radam, got 'lion'"),
        (lambda: OptimizerSettings(name="adam", nesterov=True), "with sgd and a momentum > 0 alone, got adam and"),
        (lambda: OptimizerSettings(momentum=0.0, nesterov=True), "alone, got sgd and momentum 0.0; switch it off"),
        (lambda: ScheduleSettings("linear"), "schedule.name to be one of cosine, step, poly, got 'linear'"),
        (
            lambda: Recipe(epochs=6, schedule=ScheduleSettings(warmup_epochs=5, cooldown_epochs=2)),
            "6 epochs, got 5 and 2",
        ),
        (lambda: Recipe(model_args=(("rate", math.nan),)), "rate in model_args to be finite, got nan"),
        (lambda: Recipe(model_args=(("act", "\udcff"),)), "act in model_args to be text in UTF-8"),
        (lambda: Recipe(task_args=(("flip", True), ("flip", False))), "task_args, got .*: each name counts once"),
        (lambda: ScheduleSettings(milestones=(3, 2)), r"schedule.milestones to ascend, got \(3, 2\)"),
        (
            lambda: ScheduleSettings("cosine", milestones=(2.0, 4.0)),
            r"milestones with schedule.name=step alone, got \(2.0, 4.0\) with cosine; leave them out or choose step",
        ),
        (
            lambda: Recipe(epochs=60, schedule=ScheduleSettings("step", milestones=(30, 60, 90))),
            "milestones before epoch 60, at which the decay ends, got 60, 90; lower the milestones, leave them out",
        ),
        (
            lambda: Recipe(epochs=60, schedule=ScheduleSettings("step", cooldown_epochs=9, milestones=(51, 52))),
            "before epoch 51, at which the decay ends, got 52; lower",
        ),
        (
            lambda: OptimizerSettings(lr_factors=(("head.*", 0.0),)),
            "'head.\\*' in optimizer.lr_factors to be",
        ),
        (lambda: Runtime(compile="yes"), "runtime.compile to be True or False, got 'yes'"),
        (lambda: DataSettings(name=3), "data.name to be a text, got 3"),
        (lambda: DataSettings(name="folder:\0"), r"data.name to be text without null characters, got 'folder:\\x00'"),
    ],
)
def test_choices_texts_and_contradictions(make, text):
    with pytest.raises(InputError, match=text):
        make()


def test_a_schedule_that_was_shortened_in_proportion_fits():
    assert Reduction(epochs=7).apply(Recipe(schedule=ScheduleSettings(warmup_epochs=150, cooldown_epochs=50)))


def test_numbers_of_other_libraries_are_numbers():
    numpy = pytest.importorskip("numpy")
    check_number("x", numpy.int64(3), int, COUNT)
    check_number("x", numpy.float32(0.5), float, Range(above=0))
    with pytest.raises(InputError, match=r"expected x to be an integer, got 0\.5"):
        check_number("x", 0.5, int, Range())
    with pytest.raises(InputError, match=r"expected x to be a finite number > 0, got tensor\(1.\)"):
        check_number("x", torch.tensor(1.0), float, Range(above=0))


def test_settings_hold_plain_numbers_and_tuples():
    numpy = pytest.importorskip("numpy")
    optimizer = OptimizerSettings(lr=numpy.geomspace(0.01, 0.1, 3)[1], lr_factors=[["fc.*", numpy.float32(0.5)]])
    assert (type(optimizer.lr), optimizer.lr_factors) == (float, (("fc.*", 0.5),))
    schedule = ScheduleSettings(name="step", milestones=[1, 2])
    assert schedule.milestones == (1, 2)
    run = Run(Recipe(epochs=3, optimizer=optimizer, schedule=schedule), seed=numpy.arange(3)[1])
    assert type(run.seed) is int
    assert type(hash(run)) is int
    milestones = ScheduleSettings(name="step", milestones=numpy.array([1.0, 2.0])).milestones
    assert (milestones, {type(m) for m in milestones}) == ((1.0, 2.0), {float})


def test_numbers_have_the_type_of_their_setting():
    recipe = Recipe(sgs=SgsSettings(k=5), optimizer=OptimizerSettings(weight_decay=0), model=np.array(["resnet18"])[0])
    assert [type(v) for v in (recipe.sgs.k, recipe.optimizer.weight_decay, recipe.model)] == [float, float, str]
    assert replace_setting(recipe, "optimizer.weight_decay", "1e-4").optimizer.weight_decay == 1e-4
    assert replace_setting(recipe, "sgs.k", np.float64(2)).sgs.k == 2.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((("norm", None),), "norm in model_args to be a number, a text, True or False, got None"),
        ((("layers", (2, 2)),), r"layers in model_args to be a number, a text, .* got \(2, 2\)"),
        ({"width": 3}, "model_args to be pairs of a name and a value, got 'width'"),
    ],
)
def test_arguments_are_pairs_of_a_name_and_a_plain_value(arguments, text):
    with pytest.raises(InputError, match=text):
        Recipe(model_args=arguments)


def test_none_is_a_value_where_the_annotation_has_it():
    check_settings(DataSettings(limit_train=None))
    with pytest.raises(InputError, match="expected epochs to be an integer"):
        Recipe(epochs=None)


COMMANDS = ("train", "compare", "search", "reproduce", "worker", "report", "power", "list")


def test_the_command_alone_prints_its_help(capsys):
    with pytest.raises(SystemExit) as ending:
        main([])
    assert ending.value.code == 0
    printed = capsys.readouterr().out
    assert all(
        command in printed for command in ("train", "compare", "search", "reproduce", "worker", "report", "list")
    )


@pytest.mark.parametrize("value", ["cifar10", {"lr": 0.1}, None])
def test_a_group_of_settings_has_its_class(value):
    with pytest.raises(InputError, match=r"expected optimizer to be OptimizerSettings\(\.\.\.\), got"):
        Recipe(optimizer=value)
