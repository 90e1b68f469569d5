"""Experiments: recipes and published tables as data, studies on one machine or many, reports (extra ``lab``).

A study is a set of entries times seeds; each of its runs leaves a record in its folder; a report is made from records.
"""

from backpass.errors import naming_extra

with naming_extra("lab", "experiments"):
    from backpass.experiments.api import compare, reproduce, search, train
    from backpass.experiments.comparison import compare_study
    from backpass.experiments.entry import Entry, Published
    from backpass.experiments.finetuning import finetuning_study
    from backpass.experiments.inspection import LayerInspection, inspect_scalings
    from backpass.experiments.power import seeds_needed, smallest_difference
    from backpass.experiments.recipes import RECIPES, get_recipe
    from backpass.experiments.record import Record, read_record, read_records, records_at
    from backpass.experiments.reporting.figures import FIGURES, write_figure
    from backpass.experiments.reporting.report import write_report
    from backpass.experiments.reporting.tables import ResultTable, result_table
    from backpass.experiments.reproduction import Reduction, table_study
    from backpass.experiments.running import StudyResult, run_study
    from backpass.experiments.search import search_study
    from backpass.experiments.study import Study, read_study
    from backpass.experiments.tables import Table, get_table, list_tables
    from backpass.experiments.tuning import Choice, Tuning, parse_space

__all__ = [
    "FIGURES",
    "RECIPES",
    "Choice",
    "Entry",
    "LayerInspection",
    "Published",
    "Record",
    "Reduction",
    "ResultTable",
    "Study",
    "StudyResult",
    "Table",
    "Tuning",
    "compare",
    "compare_study",
    "finetuning_study",
    "get_recipe",
    "get_table",
    "inspect_scalings",
    "list_tables",
    "parse_space",
    "read_record",
    "read_records",
    "read_study",
    "records_at",
    "reproduce",
    "result_table",
    "run_study",
    "search",
    "search_study",
    "seeds_needed",
    "smallest_difference",
    "table_study",
    "train",
    "write_figure",
    "write_report",
]
