"""Tables 4 to 6 of the SGS paper's appendix (Detkov et al., ICLR 2023). Numbers stand as the paper prints them."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from backpass.experiments.entry import Entry, Published
from backpass.experiments.recipes.sgs import CIFAR_200
from backpass.experiments.study import make_key
from backpass.experiments.tables.table import Table
from backpass.experiments.tuning import Space, Tuning
from backpass.training.recipe import OptimizerSettings, Recipe

__all__ = ["SGS_APPENDIX_TABLES"]

_THREE_RUNS = "averaged over 3 independent replicas; the configuration files set the seed 42 + rank"

# Model as printed, ours, baseline, spread, SGS, spread.
_TABLE_4 = (
    ("VGG-11", "vgg11_bn", 70.8, 0.1, 73.2, 0.1),
    ("VGG-13", "vgg13_bn", 74.7, 0.1, 76.1, 0.1),
    ("VGG-16", "vgg16_bn", 74.9, 0.1, 76.2, 0.1),
    ("VGG-19", "vgg19_bn", 74.6, 0.1, 76.1, 0.2),
    ("ResNet-18", "resnet18", 77.8, 0.1, 78.8, 0.1),
    ("ResNet-34", "resnet34", 79.0, 0.3, 80.0, 0.2),
    ("ResNet-50", "resnet50", 79.1, 0.2, 79.6, 0.2),
    ("ShuffleNet", "shufflenet", 72.4, 0.1, 72.8, 0.2),
    ("MobileNetV2", "mobilenetv2", 73.9, 0.1, 74.2, 0.2),
    ("SeResNet-18", "seresnet18", 78.4, 0.1, 79.6, 0.1),
    ("SeResNet-34", "seresnet34", 79.3, 0.2, 80.3, 0.2),
    ("PreActResNet-18", "preactresnet18", 75.7, 0.1, 76.3, 0.1),
    ("PreActResNet-34", "preactresnet34", 77.4, 0.1, 77.9, 0.1),
    ("PyramidNet (alpha = 48)", "pyramidnet110_a48", 79.1, 0.1, 79.9, 0.2),
    ("PyramidNet (alpha = 84)", "pyramidnet110_a84", 81.1, 0.1, 81.6, 0.1),
    ("PyramidNet (alpha = 270)", "pyramidnet110_a270", 83.3, 0.1, 83.6, 0.1),
    ("Xception", "xception", 79.0, 0.1, 80.0, 0.1),
)

_MODELS = {"VGG-11": "vgg11_bn", "ResNet-18": "resnet18"}

# Optimizer: no SGS, spread, SGS, spread.
_TABLE_5 = {
    "VGG-11": {
        "SGD": (68.3, 0.1, 70.7, 0.1),
        "SGD + Momentum": (71.0, 0.1, 73.2, 0.1),
        "Adadelta": (69.2, 0.2, 70.8, 0.1),
        "Adagrad": (66.2, 0.1, 66.2, 0.2),
        "Adagrad*": (66.2, 0.1, 67.0, 0.1),
        "Adam": (68.8, 0.2, 70.4, 0.2),
        "Adamax": (68.4, 0.2, 69.9, 0.1),
        "NAdam": (69.2, 0.1, 70.2, 0.1),
        "RAdam": (69.8, 0.1, 71.1, 0.1),
    },
    "ResNet-18": {
        "SGD": (75.8, 0.2, 76.3, 0.1),
        "SGD + Momentum": (77.6, 0.1, 78.5, 0.1),
        "Adadelta": (75.8, 0.2, 76.4, 0.1),
        "Adagrad": (72.2, 0.2, 72.3, 0.2),
        "Adagrad*": (72.2, 0.2, 72.9, 0.1),
        "Adam": (75.1, 0.1, 76.2, 0.1),
        "Adamax": (74.9, 0.1, 75.8, 0.1),
        "NAdam": (75.6, 0.1, 76.0, 0.1),
        "RAdam": (76.2, 0.2, 76.8, 0.1),
    },
}

# The paper tunes learning rate and weight decay by a grid search and prints neither grid nor choice. Our grid lies
# around the 0.1 of Appendix A.1 for SGD, elsewhere around PyTorch's default rates, and around that appendix's decay.
_DECAY = CIFAR_200.optimizer.weight_decay
_OPTIMIZERS = {
    "SGD": OptimizerSettings("sgd", lr=0.1, momentum=0.0, weight_decay=_DECAY),
    "SGD + Momentum": CIFAR_200.optimizer,
    "Adadelta": OptimizerSettings("adadelta", lr=1.0, weight_decay=_DECAY),
    "Adagrad": OptimizerSettings("adagrad", lr=0.01, weight_decay=_DECAY),
    "Adagrad*": OptimizerSettings("adagrad", lr=0.01, weight_decay=_DECAY),
    "Adam": OptimizerSettings("adam", lr=1e-3, weight_decay=_DECAY),
    "Adamax": OptimizerSettings("adamax", lr=2e-3, weight_decay=_DECAY),
    "NAdam": OptimizerSettings("nadam", lr=2e-3, weight_decay=_DECAY),
    "RAdam": OptimizerSettings("radam", lr=1e-3, weight_decay=_DECAY),
}

# Rows are epochs 100, 200, 600 with batch sizes 64, 128, 512 each: baseline, spread, SGS, spread.
_TABLE_6 = {
    "VGG-11": (
        (70.4, 0.2, 71.1, 0.1),
        (70.8, 0.1, 72.5, 0.2),
        (68.8, 0.2, 70.8, 0.1),
        (71.0, 0.1, 72.4, 0.2),
        (70.8, 0.1, 73.2, 0.1),
        (68.6, 0.2, 71.6, 0.1),
        (71.0, 0.1, 73.0, 0.1),
        (70.1, 0.2, 73.2, 0.1),
        (68.2, 0.1, 71.3, 0.1),
    ),
    "ResNet-18": (
        (77.5, 0.2, 78.1, 0.1),
        (77.5, 0.1, 78.0, 0.2),
        (75.2, 0.1, 75.6, 0.1),
        (77.8, 0.2, 78.4, 0.1),
        (77.8, 0.1, 78.8, 0.1),
        (76.2, 0.1, 76.7, 0.1),
        (78.0, 0.1, 78.7, 0.1),
        (77.9, 0.1, 79.0, 0.1),
        (76.4, 0.1, 77.2, 0.2),
    ),
}


def _pair(
    label: str,
    plain: Published,
    sgs: Published,
    recipe: Recipe,
    note: str,
    *,
    sgs_recipe: Recipe | None = None,
    runs_of: str | None = None,
    space: Space = (),
) -> Iterable[Entry]:
    """Yield a baseline and its SGS entry."""
    baseline = make_key(label.replace("*", "-update"), "plain")
    yield Entry(baseline, label, "plain", recipe, runs_of=runs_of, published=plain, note=note, space=space)
    key = make_key(label.replace("*", "-update"), "sgs")
    yield Entry(key, label, "sgs", sgs_recipe or recipe, baseline, published=sgs, note=note, space=space)


def _table_4() -> Table:
    entries: list[Entry] = []
    for label, model, plain, plain_std, sgs, sgs_std in _TABLE_4:
        recipe = replace(CIFAR_200, model=model)
        note = "settings of Appendix A.1"
        entries += _pair(label, Published(plain, plain_std), Published(sgs, sgs_std), recipe, note)
    title = "SGS Table 4: seventeen models on CIFAR-100"
    return Table("sgs-table-4", title, tuple(entries), 3, _THREE_RUNS)


def _table_5() -> Table:
    note = "settings of Appendix A.1; the grid for learning rate and weight decay is ours"
    entries: list[Entry] = []
    for model, lines in _TABLE_5.items():
        for optimizer, (plain, plain_std, sgs, sgs_std) in lines.items():
            recipe = replace(CIFAR_200, model=_MODELS[model], optimizer=_OPTIMIZERS[optimizer])
            on_update = optimizer == "Adagrad*"
            rates = tuple(f"{factor * recipe.optimizer.lr:.3g}" for factor in (0.1, 0.3, 1.0, 3.0))
            space = (("optimizer.lr", rates), ("optimizer.weight_decay", ("1e-4", "5e-4", "2e-3")))
            entries += _pair(
                f"{model}, {optimizer}",
                Published(plain, plain_std),
                Published(sgs, sgs_std),
                recipe,
                note,
                sgs_recipe=replace(recipe, sgs=replace(recipe.sgs, apply="update")) if on_update else None,
                runs_of=make_key(f"{model}, Adagrad", "plain") if on_update else None,
                space=space,
            )
    return Table(
        name="sgs-table-5",
        title="SGS Table 5: optimizers with and without SGS on CIFAR-100",
        entries=tuple(entries),
        seeds=3,
        repetitions=_THREE_RUNS,
        notes=("*: the scaling is applied to the optimizer's update, right before the weights change",),
        tuning=Tuning(seeds=(1000,)),
    )


def _table_6() -> Table:
    entries: list[Entry] = []
    for model, lines in _TABLE_6.items():
        settings = product((100, 200, 600), (64, 128, 512))
        for (epochs, batch_size), (plain, plain_std, sgs, sgs_std) in zip(settings, lines, strict=True):
            recipe = replace(CIFAR_200, model=_MODELS[model], epochs=epochs, batch_size=batch_size)
            label = f"{model}, {epochs} epochs, batch {batch_size}"
            note = "settings of Appendix A.1 but for epochs and batch size"
            entries += _pair(label, Published(plain, plain_std), Published(sgs, sgs_std), recipe, note)
    title = "SGS Table 6: epochs and batch sizes with and without SGS on CIFAR-100"
    return Table("sgs-table-6", title, tuple(entries), 3, _THREE_RUNS)


SGS_APPENDIX_TABLES: tuple[Table, ...] = (_table_4(), _table_5(), _table_6())
