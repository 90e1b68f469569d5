import re
from dataclasses import replace

from backpass.experiments import compare_study, write_report
from backpass.experiments.reporting.report import study_of
from backpass.training.recipe import Recipe

RECIPE = Recipe(epochs=2)


def test_the_page_shows_every_line_layer_and_setting(make_record, tmp_path):
    scalings = {"conv1.weight": [[0.5, 1.0, 1.5]]}
    records = [make_record(RECIPE, "plain", s, [0.5, a], entry="plain") for s, a in [(0, 0.61), (1, 0.72)]]
    records += [replace(make_record(RECIPE, "sgs", 0, [0.5, 0.83], entry="sgs"), scalings=scalings)]
    table = write_report(compare_study(RECIPE, ["plain", "sgs", "pgt"], [0, 1]), records, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in ("61.00 72.00", "83.00", "not run", "Scalings: sgs, seed 0", "56,554 parameters", "optimizer.lr"):
        assert text in page
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="http', page)  # self-contained
    assert (tmp_path / "table.md").read_text() == table.markdown()


def test_settings_that_differ_between_runs_are_not_shown_as_one(make_record, tmp_path):
    records = [make_record(replace(RECIPE, batch_size=size), "plain", 0, [0.5]) for size in (32, 64)]
    write_report(*study_of(records), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<dt>batch_size</dt><dd>differs</dd>" in page
    assert "<dt>epochs</dt><dd>2</dd>" in page


def test_records_without_a_study_are_grouped_by_recipe_and_method(make_record):
    other = replace(RECIPE, model="resnet18")
    records = [make_record(RECIPE, "sgs", 1, [0.5]), make_record(RECIPE, "plain", 0, [0.5])]
    study, keyed = study_of(records)
    assert [(entry.label, entry.baseline) for entry in study.entries] == [("sgs", "plain"), ("plain", None)]
    assert (study.title, study.seeds) == ("digits_net on digits", (0, 1))
    assert [record.entry for record in keyed] == ["sgs", "plain"]
    study, keyed = study_of([*records, make_record(other, "pgt", 0, [0.5])])
    assert [(entry.label, entry.method, entry.baseline) for entry in study.entries] == [
        ("recipe 1, digits_net", "sgs", "recipe-1-digits_net-plain"),
        ("recipe 1, digits_net", "plain", None),
        ("recipe 2, resnet18", "pgt", None),
    ]
    assert keyed[2].entry == "recipe-2-resnet18-pgt"
