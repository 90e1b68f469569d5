"""Each figure is drawn from records made by hand, and its numbers are those of the records."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from backpass.__main__ import main
from backpass.errors import InputError
from backpass.experiments import FIGURES, RECIPES, finetuning_study, records_at, write_figure
from backpass.experiments.reporting.charts import learning_curves
from backpass.experiments.reporting.drawing.canvas import style
from backpass.experiments.reporting.drawing.curves import draw_curves
from backpass.experiments.reporting.drawing.family import draw_family
from backpass.experiments.reporting.drawing.groups import group_records
from backpass.experiments.reporting.drawing.k_curve import draw_k_curve
from backpass.experiments.reporting.drawing.kernel_magnitude import draw_kernel_magnitude
from backpass.experiments.reporting.drawing.norm_weights import draw_norm_weights
from backpass.experiments.reporting.drawing.reliability import draw_reliability
from backpass.experiments.reporting.drawing.scalings import draw_scalings
from backpass.experiments.serialization import to_json
from backpass.training.recipe import PgtSettings, WeightSettings
from backpass.training.traces import Traces

RECIPE = replace(RECIPES["digits"], epochs=2)
LAYERS = ("conv1.weight", "conv2.weight", "conv3.weight")
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def kernel(centre, edge, corner):
    return [[corner, edge, corner], [edge, centre, edge], [corner, edge, corner]]


def by_layer(value):
    return dict.fromkeys(LAYERS, value)


@pytest.fixture
def make(make_record):
    """Makes a record with traces."""

    def make(method, seed, accuracy=0.5, recipe=RECIPE, shift=0.0):
        record = make_record(recipe, method, seed, [accuracy / 2, accuracy], train_accuracy=accuracy)
        norms = dict.fromkeys(("train_logit_norm", "train_logit_spread", "train_gradient_norm"), 1.0 + seed)
        scalings = {}
        if "sgs" in method:
            scalings = {
                0: by_layer(kernel(1.0, 1.0, 1.0)),
                1: by_layer(kernel(3.0 + shift, 1.0, 0.5)),
                5: by_layer(kernel(5.0 + shift, 0.75, 0.25)),
            }
        bins = [[4.0, 6.0], [0.4, 0.9], [0.5, 1.0]]
        traces = Traces(
            scalings=scalings,
            kernels={0: by_layer(kernel(0.1, 0.1, 0.1)), 2: by_layer(kernel(0.3, 0.1, 0.1))},
            norm_weights={f"bn{i}.weight": [0.1 * i * d for d in range(11)] for i in (1, 2)},
            reliability={"": bins} | ({"_at_alpha": bins} if "pgt" in method else {}),
        )
        return replace(record, history=[epoch | norms for epoch in record.history], traces=traces)

    return make


@pytest.fixture
def records(make):
    k2 = replace(RECIPE, sgs=replace(RECIPE.sgs, k=2.0))
    return [
        *(make("sgs", seed, 0.6 + 0.01 * seed) for seed in (0, 1)),
        *(make("sgs", seed, 0.55 + 0.01 * seed, k2) for seed in (0, 1)),
        *(make("plain", seed) for seed in (0, 1)),
        make("pgt", 0, 0.7),
    ]


def written(figure):
    """Return all texts in a figure."""
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_every_format(suffix, records, tmp_path):
    paths = [tmp_path / f"{number}{suffix}" for number in (1, 2)]
    for path in paths:
        write_figure("curves", records, path)
    assert paths[0].read_bytes().startswith(SIGNATURES[suffix])
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(name, records, tmp_path):
    write_figure(name, records, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 5000


def test_groups_and_their_labels(records):
    groups = group_records(records)
    assert [(g.label, [r.seed for r in g.records]) for g in groups] == [
        ("plain", [0, 1]),
        ("sgs, k = 5.0", [0, 1]),
        ("sgs, k = 2.0", [0, 1]),
        ("pgt", [0]),
    ]


def test_a_setting_that_a_method_does_not_use_makes_no_group(make):
    other = replace(RECIPE, sgs=replace(RECIPE.sgs, k=2.0), pgt=PgtSettings(alpha=0.5))
    groups = group_records([make("plain", 0), make("plain", 1, recipe=other)])
    assert [(g.label, len(g.records)) for g in groups] == [("plain", 2)]


def test_the_seeds_of_fine_tuned_runs_make_one_group(make):
    runs = [run.run for run in finetuning_study("net", RECIPE, RECIPE, (0, 1)).runs()]
    groups = group_records([make(run.method, run.seed, recipe=run.recipe) for run in runs])
    assert [(g.label, [r.seed for r in g.records]) for g in groups] == [
        ("plain, weights.source = None", [0, 1]),
        ("plain, weights.source = study:net-pretraining-plain", [0, 1]),
        ("plain, weights.source = study:net-pretraining-sgs", [0, 1]),
        ("sgs, weights.source = None", [0, 1]),
        ("sgs, weights.source = study:net-pretraining-sgs", [0, 1]),
        ("sgs, weights.source = study:net-pretraining-plain", [0, 1]),
    ]


def test_runs_that_start_from_another_seed_are_a_group_of_their_own(make):
    recipe = replace(RECIPE, weights=WeightSettings("study:first-seed1"))
    groups = group_records([make("plain", seed, recipe=recipe) for seed in (1, 2)])
    assert [g.label for g in groups] == [
        "plain, weights.source = study:first",
        "plain, weights.source = study:first-seed1",
    ]


def test_scalings_are_means_over_seeds_at_the_first_and_the_last_refresh(make):
    groups = group_records([make("plain", 0), make("sgs", 0), make("sgs", 1, shift=1.0)])
    texts = written(draw_scalings(groups, ["conv2"]))
    assert {"3.50", "0.50", "5.50", "0.25"} <= set(texts)  # the centres are 3, 4 and 5, 6
    assert "start (after 1 epoch)" in texts
    assert "end (after 5 epochs)" in texts
    assert "conv2" in texts
    assert "conv1" not in texts
    with pytest.raises(InputError, match=r"expected layers among conv1.weight, .*, got conv9; choose from these"):
        draw_scalings(groups, ["conv9"])


def test_kernel_magnitudes_have_mean_one(make):
    figure = draw_kernel_magnitude(group_records([make("plain", 0), make("sgs", 0)]))
    texts = written(figure)
    mean = (0.3 + 8 * 0.1) / 9
    assert f"{0.3 / mean:.2f}" in texts
    assert {"plain\nmean |W|", "sgs\nmean |W|", "sgs\nscaling G"} <= set(texts)


def test_a_layer_without_a_scaling_leaves_its_place_empty(make):
    record = make("sgs", 0)
    fixed = {0: {name: value for name, value in record.traces.scalings[1].items() if name != LAYERS[0]}}
    groups = group_records([replace(record, traces=replace(record.traces, scalings=fixed))])
    panels = draw_kernel_magnitude(groups).axes[:6]
    assert [axes.get_title() for axes in panels] == ["conv1", "conv2", "conv3", "", "conv2", "conv3"]
    assert [axes.get_ylabel() for axes in panels if axes.axison] == ["sgs\nmean |W|", "", "", "sgs\nscaling G", ""]
    assert "scaling G" not in "".join(written(draw_kernel_magnitude(groups, ["conv1"])))


def test_layers_that_dyrep_grew_in_some_runs_alone_are_left_out(make):
    first, second = make("dyrep", 0), make("dyrep", 1)
    grown = {**first.traces.kernels[2], "conv9.branches.kxk.conv.weight": kernel(1.0, 1.0, 1.0), LAYERS[0]: [[1.0]]}
    norms = {"bn1.weight": [0.3 * d for d in range(11)], "bn3.weight": [0.0] * 11}
    second = replace(second, traces=replace(second.traces, kernels={2: grown}, norm_weights=norms))
    magnitudes = draw_kernel_magnitude(group_records([second, first]))
    assert [axes.get_title() for axes in magnitudes.axes[:2]] == ["conv2", "conv3"]
    (line,) = draw_norm_weights(group_records([second, first])).axes[0].lines
    assert line.get_ydata() == pytest.approx([1.0])  # of bn1: the mean of the medians 0.5 and 1.5
    other = {"conv9.weight": [1.0]}
    apart = replace(second, traces=replace(second.traces, kernels={2: other}, norm_weights=other))
    plain, groups = make("plain", 0), group_records([first, apart])
    for draw in (draw_kernel_magnitude, draw_norm_weights):
        assert draw([*group_records([plain]), *groups])
        with pytest.raises(InputError, match=r"the same in all seeds, got none; train .* with runtime.traces, or name"):
            draw(groups)


def test_the_k_curve_is_normalised_by_the_gain_at_five(records):
    figure = draw_k_curve(group_records(records))
    left, right = figure.axes
    (line,) = (line for line in right.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o")
    assert list(line.get_xdata()) == [2.0, 5.0]
    assert list(line.get_ydata()) == pytest.approx([0.055 / 0.105, 1.0])
    points = next(iter(left.containers))[0]
    assert list(points.get_ydata()) == pytest.approx([5.5, 10.5])


def test_k_curves_of_two_recipes_have_two_names(make, records):
    longer = replace(RECIPE, epochs=80)
    k2 = replace(longer, sgs=replace(longer.sgs, k=2.0))
    runs = [make("plain", 0, recipe=longer), make("sgs", 0, 0.6, longer), make("sgs", 0, 0.55, k2)]
    (legend,) = draw_k_curve(group_records([*records, *runs])).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "digits_net on digits, epochs = 2",
        "digits_net on digits, epochs = 80",
    ]


def test_without_a_gain_at_five_the_k_curve_is_not_normalised(make):
    k2 = replace(RECIPE, sgs=replace(RECIPE.sgs, k=2.0))
    runs = [make("plain", 0, 0.7), make("sgs", 0, 0.6), make("sgs", 0, 0.8, k2)]
    figure = draw_k_curve(group_records(runs))
    assert "digits_net on digits (no gain at k = 5)" in written(figure)
    assert [line for line in figure.axes[1].lines if line.get_marker() == "o"] == []


def test_a_k_curve_needs_a_baseline(make):
    k2 = replace(RECIPE, sgs=replace(RECIPE.sgs, k=2.0))
    with pytest.raises(InputError, match="expected runs of SGS at two values of k or more, and runs of the same"):
        draw_k_curve(group_records([make("sgs", 0), make("sgs", 0, recipe=k2)]))


def test_curves_are_means_in_percent(records):
    left, right = draw_curves(group_records(records)).axes
    lines = {line.get_label(): line for line in right.lines}
    assert list(lines["sgs, k = 5.0"].get_ydata()) == pytest.approx([30.25, 60.5])
    assert left.get_ylabel() == "training accuracy, %"


def test_curves_have_the_epochs_in_which_every_run_was_evaluated(make_record):
    runs = [make_record(RECIPE, "plain", seed, [0.1, 0.2, 0.3, 0.4]) for seed in (0, 1)]
    del runs[0].history[0]["test_accuracy"], runs[1].history[2]["test_accuracy"]
    (axes,) = draw_curves(group_records(runs)).axes
    (line,) = axes.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2, 4], pytest.approx([20.0, 40.0]))
    points = learning_curves({"plain": runs})["data"]["values"]
    assert [(point["epoch"], point["mean"]) for point in points if point["metric"] == "accuracy, %"] == [
        (2, 20),
        (4, 40),
    ]


def test_every_evaluated_split_and_metric_has_a_panel(make, make_record):
    validated = make_record(RECIPE, "sgs", 0, [0.2, 0.4], split="validation")
    other = make_record(RECIPE, "pgt", 0, [0.1, 0.3])
    other = replace(other, metric="mean_iou", history=[epoch | {"test_mean_iou": 0.125} for epoch in other.history])
    figure = draw_curves(group_records([make("plain", 0), validated, other]))
    shown = {a.get_ylabel(): {line.get_label(): list(line.get_ydata()) for line in a.lines} for a in figure.axes}
    assert shown == {
        "training accuracy, %": {"plain": pytest.approx([50.0, 50.0])},
        "test accuracy, %": {"plain": pytest.approx([25.0, 50.0]), "pgt": pytest.approx([10.0, 30.0])},
        "validation accuracy, %": {"sgs": pytest.approx([20.0, 40.0])},
        "test mIoU, %": {"pgt": pytest.approx([12.5, 12.5])},
    }


def test_the_family_shows_accuracies_where_there_are_runs(make):
    fixed = replace(RECIPE, sgs=replace(RECIPE.sgs, alpha=5.0, beta=10.0))
    runs = [make("plain", 0, 0.5), make("sgs", 0, 0.6, fixed), make("sgs", 1, 0.7, fixed)]
    texts = written(draw_family(group_records(runs)))
    assert "65.0\nn = 2" in texts
    assert "50.0\nn = 1" in texts  # plain training: alpha = beta = 1
    assert "accuracy, %" not in written(draw_family())


def test_a_family_is_of_one_training(make):
    fixed = replace(RECIPE, sgs=replace(RECIPE.sgs, alpha=5.0, beta=10.0))
    other = replace(fixed, batch_size=fixed.batch_size + 1)
    plain = make("plain", 0, 0.5, replace(RECIPE, batch_size=other.batch_size))
    texts = written(draw_family(group_records([plain, make("sgs", 0, 0.6, fixed)])))
    assert "50.0\nn = 1" not in texts  # of another recipe
    with pytest.raises(InputError, match="one training that differ in alpha and beta alone, got sgs, batch_size"):
        draw_family(group_records([make("sgs", 0, 0.6, fixed), make("sgs", 0, 0.6, other)]))
    update = replace(fixed, sgs=replace(fixed.sgs, apply="update"))
    with pytest.raises(InputError, match="got sgs, apply = gradient; sgs, apply = update; give"):
        draw_family(group_records([make("sgs", 0, 0.6, fixed), make("sgs", 0, 0.6, update)]))


@pytest.mark.parametrize("method", ["sgs+pgt+agc", "agc+sgs+pgt"])
def test_the_baseline_is_the_same_training_without_sgs_whatever_the_order_of_its_methods(make, method):
    fixed = replace(RECIPE, sgs=replace(RECIPE.sgs, alpha=5.0, beta=10.0))
    recipes = [fixed, replace(RECIPE, sgs=replace(RECIPE.sgs, k=2.0))]
    runs = [make("agc+pgt", 0, 0.5), *(make(method, 0, 0.6, recipe) for recipe in (*recipes, RECIPE))]
    assert "50.0\nn = 1" in written(draw_family(group_records(runs)))
    assert draw_k_curve(group_records(runs)).axes[0].containers


def test_reliability_pools_the_images_of_all_seeds(make):
    figure = draw_reliability(group_records([make("pgt", 0), make("pgt", 1)]))
    texts = written(figure)
    error = 0.4 * 0.1 + 0.6 * 0.1
    assert f"$z$: ECE {100 * error:.1f} %" in texts
    assert {"digits_net on digits, test images", "pgt"} <= set(texts)


def test_reliability_names_the_split_of_each_panel_where_they_differ(make):
    validated = make("sgs", 0)
    validated = replace(validated, data=replace(validated.data, split="validation"))
    figure = draw_reliability(group_records([make("plain", 0), validated]))
    assert figure.get_suptitle() == "digits_net on digits, test and validation images"
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["plain\ntest images", "sgs\nvalidation images"]


def test_no_two_groups_look_alike():
    looks = [style(number) for number in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("family", "curves")])
def test_runs_without_what_a_figure_needs_are_refused(name, make_record, tmp_path):
    with pytest.raises(InputError, match=r"^expected .*, got .*; "):
        write_figure(name, [make_record(RECIPE, "plain", 0, [0.5])], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_other_arguments_that_are_wrong(records, tmp_path):
    for arguments, text in [
        (("pie", records, tmp_path / "a.png"), "expected a figure among scalings, .*, got 'pie'"),
        (("curves", records, tmp_path / "a.gif"), "expected a path that ends with .png, .svg, .pdf, got"),
        (("curves", [], tmp_path / "a.png"), "expected runs for the figure curves, got none"),
        (("curves", records, tmp_path / "no" / "a.png"), "expected a path that can be written"),
    ]:
        with pytest.raises(InputError, match=text):
            write_figure(*arguments)
    with pytest.raises(InputError, match="expected layers for scalings, kernel-magnitude alone, got them for curves"):
        write_figure("curves", records, tmp_path / "a.png", layers=["conv1"])


def test_the_command_reads_folders_and_files_of_records(records, tmp_path, capsys):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    records[0].write(folder / "result.json")
    lines = "".join(json.dumps(json.loads(to_json(record))) + "\n" for record in records[1:])
    kept = tmp_path / "records.jsonl.gz"
    kept.write_bytes(gzip.compress(lines.encode()))
    assert records_at(kept) == records[1:]
    output = tmp_path / "figure.png"
    assert main(["figure", "k-curve", str(tmp_path / "runs"), str(kept), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert output.read_bytes().startswith(SIGNATURES[".png"])
    kept.write_bytes(b"no records")
    assert main(["figure", "curves", str(kept)]) == 2
    assert "expected readable records at" in capsys.readouterr().err


def test_kernels_with_one_and_three_axes_are_drawn(make, tmp_path):
    record = make("sgs", 0)
    kernels = {"a.weight": [1.0, 2.0, 1.0], "b.weight": torch.ones(3, 3, 3).tolist(), "c.weight": [[1.0] * 7] * 7}
    traces = replace(record.traces, scalings={1: kernels | {"a.weight": [0.5, 2.0, 0.5]}})
    write_figure("scalings", [replace(record, traces=traces)], tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
