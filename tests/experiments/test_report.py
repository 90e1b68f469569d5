import re
from dataclasses import replace

from backpass.experiments.plan import compare_plan
from backpass.experiments.report import plan_of, write_report

from backpass.training.recipe import Recipe

RECIPE = Recipe(epochs=2)


def test_the_page_shows_every_line_layer_and_setting(make_result, tmp_path):
    scalings = {"conv1.weight": [[0.5, 1.0, 1.5]]}
    results = [make_result(RECIPE, "plain", s, [0.5, a]) for s, a in [(0, 0.61), (1, 0.72)]]
    results += [replace(make_result(RECIPE, "sgs", 0, [0.5, 0.83]), scalings=scalings)]
    table = write_report(compare_plan(RECIPE, ["plain", "sgs", "pgt"], [0, 1]), results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in ("61.00 72.00", "83.00", "not run", "Scalings: sgs, seed 0", "56,554 parameters", "optimizer.lr"):
        assert text in page
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="http', page)  # self-contained
    assert (tmp_path / "table.md").read_text() == table.markdown()


def test_settings_that_differ_between_runs_are_not_shown_as_one(make_result, tmp_path):
    results = [make_result(replace(RECIPE, batch_size=size), "plain", 0, [0.5]) for size in (32, 64)]
    write_report(plan_of(results), results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<dt>batch_size</dt><dd>differs</dd>" in page
    assert "<dt>epochs</dt><dd>2</dd>" in page


def test_results_without_a_plan_are_grouped_by_recipe_and_method(make_result):
    other = replace(RECIPE, model="resnet18")
    results = [make_result(RECIPE, "sgs", 1, [0.5]), make_result(RECIPE, "plain", 0, [0.5])]
    plan = plan_of(results)
    assert [(line.label, line.baseline) for line in plan.lines] == [("sgs", 1), ("plain", None)]
    assert (plan.title, plan.seeds) == ("digits_net on digits", (0, 1))
    plan = plan_of([*results, make_result(other, "pgt", 0, [0.5])])
    assert [(line.label, line.method, line.baseline) for line in plan.lines] == [
        ("recipe 1, digits_net", "sgs", 1),
        ("recipe 1, digits_net", "plain", None),
        ("recipe 2, resnet18", "pgt", None),
    ]
