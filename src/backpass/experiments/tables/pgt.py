"""The ImageNet results of the PowerGrad Transform (Das et al., arXiv 2111.12495).

The paper's tables are not part of what is published as text; top-1 accuracies are those of the README of its published
code, and the numbers that stand in its abstract and key findings are statements of the table.
"""

from dataclasses import replace

from backpass.experiments.entry import Entry, Published
from backpass.experiments.recipes.pgt import PGT_IMAGENET
from backpass.experiments.search import SEARCHES
from backpass.experiments.study import make_key
from backpass.experiments.tables.table import Statement, Table
from backpass.experiments.tuning import VALIDATION
from backpass.training.recipe import PgtSettings, Recipe, ScheduleName

__all__ = ["PGT_TABLES"]

_REPETITIONS = "one number an entry, without spread; the number of runs is not stated, 3 is ours"
_README = "README of the published code; settings as published, in mixed precision"
_OURS = "no published number; settings of the published runs"
_LABEL_SMOOTHING = 0.1
_CLIP_NORM = 1.0

# Label, model, alpha, schedule, label smoothing, plain, PGT.
_RESULTS: tuple[tuple[str, str, float, ScheduleName, float, float, float], ...] = (
    ("ResNet-18, step", "timm/resnet18", 0.25, "step", 0.0, 69.704, 69.844),
    ("ResNet-18", "timm/resnet18", 0.25, "cosine", 0.0, 70.208, 70.298),
    ("no-norm ResNet-18", "nonorm_resnet18", 0.25, "cosine", 0.0, 66.796, 67.796),
    ("ResNet-50, step", "timm/resnet50", 0.3, "step", 0.0, 75.97, 76.494),
    ("ResNet-50", "timm/resnet50", 0.3, "cosine", 0.0, 76.56, 76.886),
    ("ResNet-50, label smoothing", "timm/resnet50", 0.3, "cosine", _LABEL_SMOOTHING, 76.698, 76.968),
    ("ResNet-101", "timm/resnet101", 0.3, "cosine", 0.0, 77.896, 78.258),
    ("SE-ResNet-18", "timm/seresnet18", 0.25, "cosine", 0.0, 71.09, 71.436),
    ("SE-ResNet-50", "timm/seresnet50", 0.3, "cosine", 0.0, 77.218, 77.952),
)

_STATEMENTS = (
    Statement("ResNet-50, gain in accuracy", 0.73, "points", "abstract; the README's cosine entries give 0.326"),
    Statement("SE-ResNet-50, gain in accuracy", 0.66, "points", "abstract; the README's entries give 0.734"),
    Statement("non-normalized ResNet-18, gain in accuracy, more than", 1.0, "points", "abstract"),
    Statement("ResNet-18, gain in training accuracy", 2.5, "%", "key findings"),
    Statement("ResNet-18, reduction of the effect of batch normalization on the weights", 30, "%", "key findings"),
    Statement("ResNet-50 with AGC and PGT, gain in training accuracy", 1.8, "%", "key findings"),
)


def _recipe(model: str, alpha: float, schedule: ScheduleName = "cosine", label_smoothing: float = 0.0) -> Recipe:
    step = schedule == "step"  # it has no cool-down in the published code
    return replace(
        PGT_IMAGENET,
        model=model,
        model_args=PGT_IMAGENET.model_args if model.startswith("timm/") else (),
        epochs=90 if step else PGT_IMAGENET.epochs,
        schedule=replace(
            PGT_IMAGENET.schedule, name=schedule, cooldown_epochs=0 if step else PGT_IMAGENET.schedule.cooldown_epochs
        ),
        label_smoothing=label_smoothing,
        pgt=PgtSettings(alpha=alpha),
    )


def _pair(
    label: str,
    recipe: Recipe,
    numbers: tuple[float, float] | None = None,
    note: str = _OURS,
    *,
    methods: tuple[str, str] = ("plain", "pgt"),
) -> list[Entry]:
    """Return an entry without PGT and one with it."""
    baseline, method = methods
    plain, pgt = (None, None) if numbers is None else map(Published, numbers)
    key = make_key(label, baseline)
    return [
        Entry(key, label, baseline, recipe, published=plain, note=note),
        Entry(make_key(label, method), label, method, recipe, key, published=pgt, note=note),
    ]


def _results() -> Table:
    entries: list[Entry] = []
    for label, model, alpha, schedule, smoothing, plain, pgt in _RESULTS:
        recipe = _recipe(model, alpha, schedule, smoothing)
        entries += _pair(label, recipe, (plain, pgt), _README)
    return Table(
        name="pgt-results",
        title="PGT on ImageNet, cosine schedule unless the label names another",
        entries=tuple(entries),
        seeds=3,
        repetitions=_REPETITIONS,
        statements=_STATEMENTS,
    )


def _clipping() -> Table:
    by_unit = f"{_OURS}; the clipping's settings are the defaults of its own paper (arXiv 2102.06171)"
    by_norm = f"{_OURS}; the bound of {_CLIP_NORM} is ours"
    no_norm = _recipe("nonorm_resnet18", 0.25)
    resnet50 = _recipe("timm/resnet50", 0.3)
    entries = [
        *_pair("ResNet-50", resnet50, note=_README),
        *_pair("ResNet-50, AGC", resnet50, note=by_unit, methods=("agc", "pgt+agc")),
        *_pair("no-norm ResNet-18, AGC", no_norm, note=by_unit, methods=("agc", "pgt+agc")),
        *_pair("no-norm ResNet-18, norm clipping", replace(no_norm, clip_norm=_CLIP_NORM), note=by_norm),
    ]
    return Table(
        name="pgt-clipping",
        title="Gradient clipping with and without PGT on ImageNet",
        entries=tuple(entries),
        seeds=3,
        repetitions=_REPETITIONS,
        notes=("the key findings state +1.8 % training accuracy of ResNet-50 with AGC and PGT",),
        statements=tuple(statement for statement in _STATEMENTS if "AGC" in statement.subject),
    )


def _search() -> Table:
    recipes = {"ResNet-18": _recipe("timm/resnet18", 0.25), "ResNet-50": _recipe("timm/resnet50", 0.3)}
    entries: list[Entry] = []
    for label, recipe in recipes.items():
        recipe = replace(recipe, data=replace(recipe.data, validation=VALIDATION))
        baseline = make_key(label, "plain")
        entries.append(Entry(baseline, label, "plain", recipe, note=_OURS))
        for alpha in SEARCHES["pgt.alpha"]:
            text = f"{label}, alpha = {alpha:g}"
            chosen = replace(recipe, pgt=PgtSettings(alpha))
            entries.append(Entry(make_key(text), text, "pgt", chosen, baseline, note=f"{_OURS}; the grid is ours"))
    return Table(
        name="pgt-alpha",
        title="The grid search for alpha on ImageNet",
        entries=tuple(entries),
        seeds=3,
        repetitions="the paper states a grid search for ResNet-18 and ResNet-50, without its grid; 3 runs are ours",
        notes=(f"accuracy on {VALIDATION:.0%} of the training images, held out",),
    )


def _limits() -> Table:
    settings = f"{_OURS}; the size is ours"
    base = _recipe("timm/resnet18", 0.25)
    entries: list[Entry] = []
    for images in (12_811, 128_116):
        recipe = replace(base, data=replace(base.data, limit_train=images))
        entries += _pair(f"{images / 1_281_167:.0%} of the training images", recipe, note=settings)
    for batch_size in (256, 1024, 4096):
        # The learning rate grows with the batch, so that it is the published one at the published size.
        lr = base.optimizer.lr * batch_size / base.batch_size
        recipe = replace(base, batch_size=batch_size, optimizer=replace(base.optimizer, lr=lr))
        entries += _pair(f"batch {batch_size}", recipe, note=f"{settings}; learning rate in proportion to the batch")
    return Table(
        name="pgt-limits",
        title="The paper's stated limits of PGT: small data and large batches, ResNet-18 on ImageNet",
        entries=tuple(entries),
        seeds=3,
        repetitions="the paper states both limits without numbers; 3 runs are ours",
    )


PGT_TABLES: tuple[Table, ...] = (_results(), _clipping(), _search(), _limits())
