"""Fine-tuning: a method or none in pretraining, and in fine-tuning, as one study."""

from collections.abc import Sequence

from backpass.experiments.entry import Entry, Published
from backpass.experiments.study import Study, make_key
from backpass.training.recipe import Recipe

__all__ = ["finetuning_entries", "finetuning_study"]


def finetuning_entries(
    label: str,
    pretraining: Recipe,
    recipe: Recipe,
    method: str = "sgs",
    *,
    published: tuple[Published | None, Published | None] = (None, None),
    notes: tuple[str, str, str] = ("", "", ""),
) -> tuple[Entry, ...]:
    """Return two entries of pretraining, and the four of fine-tuning: from each of them, without and with a method.

    The fine-tuned entries are compared with the one that has the method in neither stage.

    Args:
        label: of the model that is fine-tuned.
        pretraining: recipe of pretraining.
        recipe: recipe of fine-tuning; its ``weights.module`` is the part that takes the weights.
        method: the method.
        published: numbers of the method in neither stage, and in both.
        notes: on pretraining, on these two entries, and on the two others.
    """
    before, printed, others = notes
    first = {name: make_key(label, "pretraining", name) for name in ("plain", method)}
    cells = {(start, name): make_key(label, start, "then", name) for start in first for name in first}
    baseline = cells["plain", "plain"]
    own = f"{label}: {method} in {{}} alone"

    def cell(name: str, start: str, trained: str, number: Published | None, note: str) -> Entry:
        key = cells[start, trained]
        compared = None if key == baseline else baseline
        return Entry(key, name, trained, recipe, compared, None, number, note, starts_from=first[start])

    return (
        Entry(first["plain"], f"{label}: pretraining", "plain", pretraining, note=before),
        Entry(first[method], f"{label}: pretraining", method, pretraining, first["plain"], note=before),
        cell(label, "plain", "plain", published[0], printed),
        cell(label, method, method, published[1], printed),
        cell(own.format("pretraining"), method, "plain", None, others),
        cell(own.format("fine-tuning"), "plain", method, None, others),
    )


def finetuning_study(
    label: str, pretraining: Recipe, recipe: Recipe, seeds: Sequence[int], method: str = "sgs"
) -> Study:
    """Return :func:`finetuning_entries` as a study; a run starts from the weights of its own seed's pretraining."""
    return Study(
        f"{label}, pretrained and fine-tuned with and without {method}",
        finetuning_entries(label, pretraining, recipe, method),
        tuple(dict.fromkeys(seeds)),
    )
