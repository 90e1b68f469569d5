import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import vl_convert

from backpass.errors import InputError
from backpass.experiments import Entry, Published, Study, compare_study, finetuning_study, write_report
from backpass.experiments.record import read_records
from backpass.experiments.reporting.charts import cost_chart, difference_chart
from backpass.experiments.reporting.differences import Difference
from backpass.experiments.reporting.drawing.groups import group_records
from backpass.experiments.reporting.report import study_of
from backpass.experiments.reporting.tables import result_table
from backpass.experiments.reporting.tuning import trials_so_far
from backpass.experiments.reporting.tuning_charts import tuning_chart
from backpass.experiments.stages import next_runs, tuning_runs
from backpass.experiments.tuning import Choice, Trial, Tuning, parse_space
from backpass.training.recipe import Recipe, Run

RECIPE = Recipe(epochs=2)
HOSTILE = [
    '</script><script>alert("1")</script>',
    "<img src=x onerror=alert(1)>",
    "a\"b'c",
    "=1+1",
    "$x_{$",
    "_own",
    "{{ 1 }}",
]


class Page(HTMLParser):
    """The elements of a page, the addresses that it would load, the texts of its cells, and its JSON."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.content: list = []
        self._kind: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href", "srcset", "data") if name in found]
        self.handlers += [name for name in found if name.startswith("on")]
        self._kind = found.get("type", "code") if tag == "script" else None

    def handle_endtag(self, tag):
        self._kind = None

    def handle_data(self, text):
        if self._kind == "application/json":
            self.content.append(json.loads(text))
        elif self._kind is None:
            self.texts.append(text)

    @property
    def charts(self):
        return [content for content in self.content if isinstance(content, dict)]


def page_of(folder):
    return Page((folder / "report.html").read_text())


def compiles(spec):
    return bool(vl_convert.vegalite_to_vega(spec)["marks"])


@pytest.fixture
def study_folder(make_record, tmp_path):
    scalings = {"conv1.weight": [[0.5, 1.0, 1.5]], "conv2.weight": [[[0.5]], [[2.0]], [[0.5]]]}
    records = [make_record(RECIPE, "plain", s, [0.5, a], entry="plain") for s, a in [(0, 0.61), (1, 0.72)]]
    records += [
        replace(make_record(RECIPE, "sgs", s, [0.5, a], entry="sgs"), scalings=scalings)
        for s, a in [(0, 0.83), (1, 0.8)]
    ]
    table = write_report(compare_study(RECIPE, ["plain", "sgs", "pgt"], [0, 1]), records, tmp_path)
    assert (tmp_path / "table.md").read_text() == table.markdown()
    return tmp_path


def test_the_page_shows_every_entry_layer_setting_and_command(study_folder):
    page = page_of(study_folder)
    for text in ("61.00", "not run", "Scalings by layer", "optimizer.lr", "sgs, seed 0"):
        assert text in page.texts
    commands = [text for text in page.texts if text.startswith("backpass train ")]
    assert [re.search(r"--method (\S+) --seed (\d+)", command).groups() for command in commands] == [
        ("plain", "0"),
        ("plain", "1"),
        ("sgs", "0"),
        ("sgs", "1"),
    ]
    assert any("56,554 parameters" in text for text in page.texts)
    (scalings,) = (content for content in page.content if isinstance(content, list))
    assert scalings == [
        {
            "name": "sgs, seed 0",
            "epochs": [2],
            "layers": [
                {"name": "conv1", "planes": [[[0.5, 1.0, 1.5]]]},
                {"name": "conv2", "planes": [[[2.0]]]},
            ],
        }
    ]


def test_the_page_says_what_the_command_of_a_run_needs_that_starts_from_another(study_folder, make_record, tmp_path):
    text = "next to its own folder: give the command of that run first"
    assert text not in (study_folder / "report.html").read_text()
    study = finetuning_study("x", RECIPE, RECIPE, [0])
    records = [make_record(run.run.recipe, run.run.method, 0, [0.5], entry=run.entry) for run in study.runs()]
    write_report(study, records, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert text in page
    assert "--out runs/x-plain-then-sgs-seed0" in page


def test_no_metric_is_called_by_the_name_of_another(make_record, tmp_path):
    study = finetuning_study("net", RECIPE, RECIPE, [0])
    records = [make_record(run.run.recipe, run.run.method, 0, [0.5], entry=run.entry) for run in study.runs()]
    for number, record in enumerate(records[2:], 2):
        history = [epoch | {"test_mean_iou": epoch.pop("test_accuracy")} for epoch in record.history]
        records[number] = replace(record, metric="mean_iou", history=history)
    write_report(study, records, tmp_path)
    texts = page_of(tmp_path).texts
    assert texts.count("result, %") == 2  # of the table, and of the list of all runs
    assert "Result after the last epoch" in texts
    assert "accuracy, %" not in texts


def test_records_of_other_settings_and_seeds_in_the_folder_are_left_out(make_record, tmp_path):
    study = compare_study(RECIPE, ["plain", "sgs"], [0, 1])
    records = [make_record(RECIPE, key, seed, [0.5, 0.6], entry=key) for key in ("plain", "sgs") for seed in (0, 1)]
    other = make_record(replace(RECIPE, epochs=3), "plain", 2, [0.7, 0.8, 0.9], entry="plain")
    table = write_report(study, [*records, other, make_record(RECIPE, "sgs", 2, [0.5, 0.9], entry="sgs")], tmp_path)
    assert [(summary.n, summary.mean) for summary in table.summaries] == [(2, 0.6)] * 2
    assert "seed 2" not in (tmp_path / "report.html").read_text()


def test_the_page_is_small_and_loads_nothing(study_folder):
    page = page_of(study_folder)
    assert page.addresses == []
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("main") == 1
    assert (study_folder / "report.html").stat().st_size < 2e6


def test_the_charts_have_a_point_for_each_epoch_and_compile(study_folder):
    differences, curves, cost = page_of(study_folder).charts
    points = [
        (v["entry"], v["epoch"], v["mean"], v["n"]) for v in curves["data"]["values"] if "accuracy" in v["metric"]
    ]
    assert points == [("plain", 1, 50.0, 2), ("plain", 2, 66.5, 2), ("sgs", 1, 50.0, 2), ("sgs", 2, 81.5, 2)]
    assert [(v["entry"], v["of"], v["cost"]) for v in cost["data"]["values"]][:3] == [
        ("plain", "seed 0", 2.0),
        ("plain", "seed 1", 2.0),
        ("plain", "mean of 2", 2.0),
    ]
    assert [value["entry"] for value in differences["data"]["values"]] == ["sgs"]
    assert all(map(compiles, (differences, curves, cost)))


def test_the_cost_on_gpus_leaves_evaluation_out(make_record):
    run = make_record(RECIPE, "plain", 0, [0.5])
    cost = replace(run.cost, train_seconds=700.0, measure_seconds=200.0, evaluate_seconds=2700.0, gpu_hours=8.0)
    record = replace(run, cost=cost)  # an hour on eight GPUs, of which a quarter is training and measuring
    spec = cost_chart({"plain": [record]})
    assert [value["cost"] for value in spec["data"]["values"]] == [2.0, 2.0]
    assert spec["encoding"]["x"]["title"] == "GPU hours of training and measuring of a run"
    assert record.training_gpu_hours == 2.0
    assert run.training_gpu_hours is None
    assert replace(run, cost=replace(cost, gpu_hours=0.0)).training_gpu_hours == 0.0


@pytest.mark.parametrize("label", HOSTILE)
def test_no_label_is_taken_for_markup_or_code(label, make_record, tmp_path):
    recipe = replace(RECIPE, data=replace(RECIPE.data, label=label))
    entries = (Entry("plain", label, "plain", recipe), Entry("sgs", f"{label}2", "sgs", recipe, baseline="plain"))
    records = []
    for seed in (0, 1):
        for key in ("plain", "sgs"):
            record = make_record(recipe, key, seed, [0.5, 0.6 + seed / 10], entry=key)
            record = replace(record, data=replace(record.data, label=label), scalings={label: [[0.5, 1.5]]})
            records.append(record)
    choices = [Choice("plain", 0, (Trial(((label, label),), ((7, 0.5),)),), at_edge=(label,))]
    write_report(Study(label, entries, (0, 1), notes=(label,)), records, tmp_path, choices)
    page = page_of(tmp_path)
    assert (page.handlers, page.addresses) == ([], [])
    assert page.tags.count("img") == 0
    assert page.tags.count("script") == len(page.content) + 2
    assert label in page.texts
    assert {v["entry"] for v in page.charts[0]["data"]["values"]} == {f"{label} (plain)", f"{label}2 (sgs)"}
    assert [run["layers"][0]["name"] for run in page.content if isinstance(run, list) for run in run] == [label] * 2


def test_settings_that_differ_between_runs_are_not_shown_as_one(make_record, tmp_path):
    records = [make_record(replace(RECIPE, batch_size=size), "plain", 0, [0.5]) for size in (32, 64)]
    write_report(*study_of(records), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<td>batch_size</td><td>32</td><td>64</td>" in page
    assert "<dt>batch_size</dt>" not in page
    assert "<dt>epochs</dt><dd>2</dd>" in page


def test_the_page_names_the_runs_that_diverged(make_record, tmp_path):
    study = compare_study(RECIPE, ["plain", "sgs"], [0, 1])
    records = [make_record(RECIPE, run.run.method, run.run.seed, [0.5], entry=run.entry) for run in study.runs()[:3]]
    (tmp_path / "sgs-seed1").mkdir()
    (tmp_path / "sgs-seed1" / "error.txt").write_text("Traceback:\nbackpass.errors.DivergedError: expected a loss")
    write_report(study, records, tmp_path)
    assert "missing from means and tests: sgs, seed 1 (diverged)" in page_of(tmp_path).texts


def test_a_study_between_its_stages_has_a_page_of_what_was_tried(make_record, tmp_path):
    study = compare_study(RECIPE, ["plain", "pgt"], [0], space=parse_space(["lr=0.01,0.02"]), tuning=Tuning(seeds=(7,)))
    runs = tuning_runs(study, {})
    records = [
        make_record(run.run.recipe, run.run.method, 7, [0.5, 0.6], entry=run.entry, split="validation")
        for run in runs[:3]
    ]
    table = write_report(study, records, tmp_path)
    assert [summary.n for summary in table.summaries] == [0, 0]
    page = page_of(tmp_path)
    assert "plain: 2 points" in page.texts
    assert "pgt: 1 points" in page.texts
    assert any("The tuning stage has not ended" in text for text in page.texts)
    assert "chosen" not in page.texts
    assert all(map(compiles, page.charts))
    write_report(study, [], tmp_path)  # nothing was tried yet
    assert page_of(tmp_path).charts == []


@pytest.mark.parametrize(
    "tuning",
    [Tuning(seeds=(7, 8)), Tuning(seeds=(7, 8), halving=True), Tuning(seeds=(7, 8), trials=6, sampler="tpe")],
    ids=["grid", "halving", "tpe"],
)
def test_a_tuning_stage_with_a_run_that_diverged_is_shown_to_its_last_run(tuning, make_record, tmp_path):
    study = compare_study(RECIPE, ["plain"], [0], space=parse_space(["lr=1,2,3,4,5,6"]), tuning=tuning)
    lost, *_ = tuning_runs(study, {})
    (tmp_path / lost.folder).mkdir()
    (tmp_path / lost.folder / "error.txt").write_text("Traceback:\nbackpass.errors.DivergedError: expected a loss")
    for _ in range(9):  # more rounds than any takes
        for run in set(next_runs(study, tmp_path, {lost})) - {lost}:
            (tmp_path / run.folder).mkdir(exist_ok=True)
            record = make_record(run.run.recipe, "plain", run.run.seed, [0.5], entry=run.entry, split="validation")
            record.write(tmp_path / run.folder / "result.json")
    records = read_records(tmp_path)
    write_report(study, records, tmp_path)
    page = page_of(tmp_path)
    assert {"plain: 6 points", "diverged"} <= set(page.texts)
    assert any(text.startswith("Every tuned entry tried 6 points") for text in page.texts)
    trials = trials_so_far(study, records, tmp_path)["plain"]
    assert sum(len(trial.scores) for trial in trials) == len(records)
    assert [(trial.diverged, trial.score) for trial in trials if trial.diverged] == [((7,), None)]


@pytest.mark.parametrize("published", [None, Published(90.0)])
def test_unequal_numbers_of_points_are_those_of_the_paper_only_where_there_is_one(published, make_record, tmp_path):
    entries = (Entry("a", "a", "plain", RECIPE, published=published), Entry("b", "b", "sgs", RECIPE))
    trials = [Trial((("optimizer.lr", rate),), ((7, 0.5),)) for rate in ("0.1", "0.2")]
    choices = [Choice("a", 0, tuple(trials[:1])), Choice("b", 0, tuple(trials))]
    write_report(Study("s", entries, (0,)), [make_record(RECIPE, "plain", 0, [0.5, 0.6], entry="a")], tmp_path, choices)
    assert {"a (plain): 1 points", "b (sgs): 2 points"} <= set(page_of(tmp_path).texts)
    (note,) = [text for text in page_of(tmp_path).texts if "tried different numbers of points" in text]
    assert ("as in the paper" in note) == (published is not None)


TRIALS = [((0.01, 5), 0.5), ((0.02, 5), None), ((0.01, 50), 0.7), ((0.02, 50), 0.6)]


@pytest.mark.parametrize("settings", [("lr",), ("lr", "k"), ("lr", "k", "sgs.every")])
def test_tuning_charts_show_every_point_that_trained_and_the_chosen_one(settings):
    trials = [
        Trial(
            tuple(zip(settings, map(str, (*values, 1)), strict=False)),
            () if accuracy is None else ((0, accuracy),),
            (0,) if accuracy is None else (),
        )
        for values, accuracy in TRIALS
    ]
    spec = tuning_chart(trials, 2, "mIoU")
    assert compiles(spec)
    assert "eld-out mIoU" in str(spec)
    assert "accuracy" not in str(spec)
    rows = spec["data"]["values"]
    assert {row["score"] for row in rows} - {None} == {50, 60, 70}
    assert {row["score"] for row in rows if row["state"] == "chosen"} == {70}
    if len(settings) == 2:
        assert [row["text"] for row in rows] == ["50.0", "diverged", "70.0", "60.0"]
        assert spec["encoding"]["x"]["scale"]["domain"] == ["5", "50"]
    if len(settings) == 3:
        assert [row["place"] for row in rows if row["axis"] == "k"] == [0, 1, 1]
        assert len(rows) == 3 * 4


@pytest.mark.parametrize(
    ("settings", "axes"),
    [
        (("optimizer.lr", "sgs.alpha,sgs.beta", "epochs"), ["lr", "alpha,beta", "epochs"]),
        (("sgs.alpha", "pgt.alpha", "optimizer.lr"), ["sgs.alpha", "pgt.alpha", "optimizer.lr"]),
    ],
)
def test_parallel_coordinates_name_settings_in_short_and_the_metric_in_full(settings, axes):
    trials = [Trial(tuple((name, value) for name in settings), ((0, 0.5),)) for value in ("1", "2")]
    spec = tuning_chart(trials, 0, "PCKh@0.5")
    assert compiles(spec)
    axes = [*axes, "held-out PCKh@0.5, %"]
    assert spec["encoding"]["x"]["scale"]["domain"] == axes
    assert {row["axis"] for row in spec["data"]["values"]} == set(axes)
    assert "labelExpr" not in spec["encoding"]["x"]["axis"]


def test_tuning_charts_of_nothing_and_of_divergence_alone():
    assert tuning_chart([], None, "accuracy") is None
    for settings in (("lr",), ("lr", "k"), ("lr", "k", "every")):
        assert compiles(tuning_chart([Trial(tuple((name, "1") for name in settings), (), (0,))], None, "accuracy"))


def test_a_difference_keeps_its_interval_in_points():
    spec = difference_chart({"sgs": Difference(5, 0.01, 0.004, 0.005, 0.015)})
    assert spec["data"]["values"] == [{"entry": "sgs", "mean": 1.0, "low": 0.5, "high": 1.5}]


def test_records_without_a_study_are_grouped_by_recipe_and_method(make_record):
    other = replace(RECIPE, model="resnet18")
    records = [make_record(RECIPE, "sgs", 1, [0.5]), make_record(RECIPE, "plain", 0, [0.5])]
    study, keyed = study_of(records)
    assert [(entry.label, entry.baseline) for entry in study.entries] == [("sgs", "plain"), ("plain", None)]
    assert (study.title, study.seeds) == ("digits_net on digits", (0, 1))
    assert [record.entry for record in keyed] == ["sgs", "plain"]
    assert result_table(study, keyed).notes == ()  # Nobody planned both seeds for both.
    study, keyed = study_of([*records, make_record(other, "pgt", 0, [0.5])])
    assert [(entry.label, entry.method, entry.baseline) for entry in study.entries] == [
        ("recipe 1, digits_net", "sgs", "recipe-1-digits_net-plain"),
        ("recipe 1, digits_net", "plain", None),
        ("recipe 2, resnet18", "pgt", None),
    ]
    assert keyed[2].entry == "recipe-2-resnet18-pgt"


def test_settings_that_a_method_does_not_use_make_no_other_recipe(make_record, tmp_path):
    stronger = replace(RECIPE, sgs=replace(RECIPE.sgs, k=3.0), reparam=replace(RECIPE.reparam, acb_gamma=1.0))
    records = [
        make_record(recipe, method, seed, [0.5])
        for method, recipe, seed in (("plain", RECIPE, 0), ("plain", stronger, 1), ("sgs", stronger, 0))
    ]
    study, keyed = study_of(records)
    assert [(entry.label, entry.baseline) for entry in study.entries] == [("plain", None), ("sgs", "plain")]
    assert result_table(study, keyed).summaries[1].difference is not None
    write_report(study, keyed, tmp_path)
    study, _ = study_of([*records, make_record(RECIPE, "sgs", 0, [0.5])])
    assert [(e.label.split(",")[0], e.method, e.baseline) for e in study.entries] == [
        ("recipe 1", "plain", None),
        ("recipe 2", "sgs", "recipe-1-digits_net-plain"),
        ("recipe 1", "sgs", "recipe-1-digits_net-plain"),
    ]


def test_runs_that_were_trained_again_are_left_out_with_a_note(make_record):
    records = [make_record(RECIPE, "sgs", seed, [score]) for seed, score in ((0, 0.5), (1, 0.6), (0, 0.9))]
    study, keyed = study_of(records)
    assert [record.score for record in keyed] == [0.5, 0.6]  # the first counts, as in figures
    assert study.notes == ("left out: 1 more of the same recipes, methods and seeds",)


def test_runs_that_start_from_different_trainings_of_one_name_are_not_merged(make_record):
    records = [
        make_record(run.run.recipe, run.run.method, run.run.seed, [0.5], entry=run.entry)
        for recipe, seed in ((RECIPE, 0), (replace(RECIPE, epochs=3), 1))
        for run in finetuning_study("net", recipe, RECIPE, (seed,)).runs()
    ]
    expected = (
        "one recipe and method of 'net-pretraining-plain', from whose weights other runs start, got 2; give the runs "
        "of each study by themselves$"
    )
    for group in (study_of, group_records):
        with pytest.raises(InputError, match=expected):
            group(records)


def test_runs_that_start_from_one_training_on_files_in_two_places_are_merged(make_record):
    there = replace(RECIPE, data=replace(RECIPE.data, root="there", download=True))
    records = [
        make_record(run.run.recipe, run.run.method, seed, [0.5], entry=run.entry)
        for seed, recipe in enumerate((RECIPE, there))
        for run in finetuning_study("net", recipe, recipe, (seed,)).runs()
    ]
    assert len(records) == 12
    assert [len(group.records) for group in group_records(records)] == [2] * 6


def test_runs_on_files_in_two_places_are_compared_and_keep_their_commands(make_record, tmp_path):
    there = replace(RECIPE, data=replace(RECIPE.data, root="there", download=True))
    runs = [(recipe, method, seed) for seed, recipe in enumerate((RECIPE, there)) for method in ("plain", "sgs")]
    study, keyed = study_of([make_record(recipe, method, seed, [0.5]) for recipe, method, seed in runs])
    assert [(entry.label, entry.baseline) for entry in study.entries] == [("plain", None), ("sgs", "plain")]
    assert [summary.n for summary in write_report(study, keyed, tmp_path).summaries] == [2, 2]
    commands = [text for text in page_of(tmp_path).texts if text.startswith("backpass train ")]
    assert ["--data.root there --data.download" in command for command in commands] == [False, True] * 2


def test_the_page_states_every_size_and_length_of_its_runs(make_record, tmp_path):
    recipes = [replace(RECIPE, epochs=epochs) for epochs in (2, 5, 1)]
    records = [make_record(recipe, "plain", 0, [0.5] * recipe.epochs) for recipe in recipes]
    sizes = [replace(records[0].model, parameters=1000 * n) for n in (4, 1, 3, 2)]
    records += [replace(records[0], run=Run(recipes[0], "dyrep", seed), model=m) for seed, m in enumerate(sizes)]
    write_report(*study_of(records), tmp_path)
    assert (
        "digits_net on digits: 1,000 to 56,554 parameters, 1,790,000 multiply-adds an image; 64 training and 30 test "
        "images; 1, 2 or 5 epochs."
    ) in page_of(tmp_path).texts


def test_different_precisions_are_noted(make_record):
    plain, sgs = (make_record(RECIPE, method, 0, [0.5]) for method in ("plain", "sgs"))
    where = sgs.environment
    half = replace(sgs, environment=replace(where, runtime=replace(where.runtime, precision="bf16")))
    study, keyed = study_of([plain, half])
    (note,) = result_table(study, keyed).notes
    assert note == "computed in different precisions, from which differences may come: plain: float32; sgs: bfloat16"


def test_the_seeds_of_fine_tuned_runs_make_one_entry_without_a_study(make_record, tmp_path):
    runs = [run.run for run in finetuning_study("net", RECIPE, RECIPE, (0, 1)).runs()]
    study, keyed = study_of([make_record(run.recipe, run.method, run.seed, [0.5]) for run in runs])
    assert [(entry.key, entry.baseline) for entry in study.entries] == [
        ("recipe-1-digits_net-plain", None),
        ("recipe-1-digits_net-sgs", "recipe-1-digits_net-plain"),
        ("recipe-2-digits_net-plain", None),
        ("recipe-3-digits_net-sgs", "recipe-3-digits_net-plain"),
        ("recipe-3-digits_net-plain", None),
        ("recipe-2-digits_net-sgs", "recipe-2-digits_net-plain"),
    ]
    assert [record.run for record in keyed] == runs
    assert [summary.n for summary in write_report(study, keyed, tmp_path).summaries] == [2] * 6


def test_runs_that_were_evaluated_on_different_images_or_seeds_are_noted(make_record):
    plain = [make_record(RECIPE, "plain", seed, [0.5]) for seed in (0, 1, 2)]
    held_out = replace(RECIPE, data=replace(RECIPE.data, validation=0.2))
    sgs = [make_record(RECIPE, "sgs", seed, [0.6]) for seed in (2, 3)]
    study, keyed = study_of([*plain, *sgs])
    assert result_table(study, keyed).notes == ("differences are over common seeds, fewer than there are runs: sgs: 1",)
    validated = make_record(held_out, "plain", 0, [0.5], split="validation")
    study, keyed = study_of([plain[0], validated])
    (note,) = result_table(study, keyed).notes
    assert note.startswith("evaluated on different images, so that the results are not comparable: recipe 1")
