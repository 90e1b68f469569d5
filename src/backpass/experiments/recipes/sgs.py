"""Tables 1 to 6 and Figure 7 of the SGS paper (Detkov et al., ICLR 2023), and its configuration files' settings.

All accuracies are the paper's, in %. The paper's tables were not all at hand: a row's ``source`` says what is ours.
"""

import itertools
from dataclasses import replace

from backpass.experiments.recipes.table import Row, Table
from backpass.training.recipe import (
    DataSettings,
    DyRepSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    SgsSettings,
)
from backpass.training.stream import StreamAugmentation

__all__ = ["ALPHA_BETA_GRID", "CIFAR_200", "CIFAR_600", "IMAGENET_120", "K_GRID", "SGS_TABLES"]

# Table 4: 17 CIFAR-100 models, 200 epochs, batch 128, SGD 0.1, decay 5e-4 on all parameters, cosine per step to 1e-6.
CIFAR_200 = Recipe(
    model="vgg11_bn",
    data=DataSettings(name="cifar100"),
    epochs=200,
    batch_size=128,
    optimizer=OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=5e-4),
    schedule=ScheduleSettings(final_lr=1e-6),
    sgs=SgsSettings(k=5.0, every=5, batches=2),
)

# Table 1: VGG-16 with the small head, 600 epochs, decay 1e-4, a refresh every 30 epochs on 20 batches.
CIFAR_600 = Recipe(
    model="vgg16_small",
    data=DataSettings(name="cifar10"),
    epochs=600,
    batch_size=128,
    optimizer=OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=1e-4),
    schedule=ScheduleSettings(final_lr=1e-6),
    sgs=SgsSettings(k=5.0, every=30, batches=20),
)

# Table 2: 120 epochs, batch 256, Nesterov momentum (the paper prints 0.1, the configuration files have 0.9), decay 1e-4
# on kernels and matrices alone, pairs that are near equal left out of the histograms.
IMAGENET_120 = Recipe(
    model="timm/resnet18",
    data=DataSettings(name="imagenet"),
    epochs=120,
    batch_size=256,
    optimizer=OptimizerSettings(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, decay_norm_and_bias=False),
    schedule=ScheduleSettings(final_lr=1e-7),
    stream_augmentation=StreamAugmentation(color_jitter=0.06),
    sgs=SgsSettings(k=5.0, every=5, batches=2, drop_near_equal=True),
    dyrep=DyRepSettings(every=5, until=100),
)

# Tables 3, 5 and 6: VGG-11 on CIFAR-100 as in Table 4, but with batch 512 and a refresh every 10 epochs.
_ABLATION = replace(CIFAR_200, batch_size=512, sgs=SgsSettings(k=5.0, every=10, batches=2))

# The paper's grids are not at hand; these are ours. alpha = beta = 1 is plain training, the baseline.
K_GRID = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
ALPHA_BETA_GRID = tuple(pair for pair in itertools.product((0.25, 0.5, 0.75, 1.0), repeat=2) if pair != (1.0, 1.0))

_SEED = "the configuration files set 42 + rank"
_THREE_RUNS = f"mean of 3 runs; {_SEED}"


def _peers(dbb: float, dyrep: float) -> tuple[tuple[str, float], ...]:
    return (("dbb_dyrep", dbb), ("dyrep", dyrep))


def _table_1() -> Table:
    name = "sgs-table-1"
    source = "Table 1; settings from the configuration files; DBB is the fixed four-branch block"
    cifar100 = replace(CIFAR_600, data=DataSettings(name="cifar100"))
    rows = (
        Row(name, "VGG-16, CIFAR-10", CIFAR_600, "sgs", 95.20, 94.90, source, peers=_peers(95.00, 95.00)),
        Row(name, "VGG-16, CIFAR-100", cifar100, "sgs", 75.50, 73.70, source, peers=_peers(74.40, 74.10)),
    )
    return Table(name, "SGS Table 1: VGG-16 on CIFAR-10 and CIFAR-100", rows, f"mean of 5 runs; {_SEED}")


def _table_2() -> Table:
    name = "sgs-table-2"
    source = "Table 2, where DBB's number is copied from the DyRep paper; settings from the configuration files"
    lines = (
        ("ResNet-18", "timm/resnet18", 71.13, 71.65, 70.99, 71.50),
        ("ResNet-34", "timm/resnet34", 74.17, 74.62, 74.33, 74.40),
        ("ResNet-50", "timm/resnet50", 76.95, 77.10, 76.71, 77.11),
    )
    rows = tuple(
        Row(
            name,
            label,
            replace(IMAGENET_120, model=model),
            "sgs",
            sgs,
            plain,
            source,
            peers=_peers(dbb, dyrep),
        )
        for label, model, plain, sgs, dbb, dyrep in lines
    )
    return Table(name, "SGS Table 2: ResNets on ImageNet", rows, _THREE_RUNS)


def _table_3() -> Table:
    name = "sgs-table-3"
    source = (
        "Table 3, ablation settings; its 69.6 is read as the plain net's, the other numbers are not at hand, and the "
        "choice of lines is ours; the net is probably that of the configuration files, with two hidden layers"
    )
    recipe = replace(_ABLATION, model="vgg11_small_2h")
    autocorrelation = replace(recipe, sgs=replace(recipe.sgs, measure="autocorrelation"))
    fixed = replace(recipe, sgs=replace(recipe.sgs, branches=("3x3", "1x3", "3x1")))
    lemma = (
        f"{source}; the fixed scaling is what Lemma 1 says of ACB's branches, without their normalisation, at mean 1"
    )
    rows = (
        Row(name, "mutual information", recipe, "sgs", None, 69.6, source),
        Row(name, "autocorrelation", autocorrelation, "sgs", None, 69.6, source),
        Row(name, "fixed, as ACB", fixed, "sgs", None, 69.6, lemma),
    )
    return Table(name, "SGS Table 3: what the scaling follows from, VGG-11 on CIFAR-100", rows, _THREE_RUNS)


def _table_4() -> Table:
    name = "sgs-table-4"
    source = "Table 4; settings from the configuration file wei_cifar"
    lines = (
        ("VGG-11", "vgg11_bn", 70.8, 73.2),
        ("VGG-13", "vgg13_bn", 74.7, 76.1),
        ("VGG-16", "vgg16_bn", 74.9, 76.2),
        ("VGG-19", "vgg19_bn", 74.6, 76.1),
        ("ResNet-18", "resnet18", 77.8, 78.8),
        ("ResNet-34", "resnet34", 79.0, 80.0),
        ("ResNet-50", "resnet50", 79.1, 79.6),
        ("ShuffleNet", "shufflenet", 72.4, 72.8),
        ("MobileNetV2", "mobilenetv2", 73.9, 74.2),
        ("SE-ResNet-18", "seresnet18", 78.4, 79.6),
        ("SE-ResNet-34", "seresnet34", 79.3, 80.3),
        ("PreActResNet-18", "preactresnet18", 75.7, 76.3),
        ("PreActResNet-34", "preactresnet34", 77.4, 77.9),
        ("PyramidNet a48", "pyramidnet110_a48", 79.1, 79.9),
        ("PyramidNet a84", "pyramidnet110_a84", 81.1, 81.6),
        ("PyramidNet a270", "pyramidnet110_a270", 83.3, 83.6),
        ("Xception", "xception", 79.0, 80.0),
    )
    rows = tuple(
        Row(name, label, replace(CIFAR_200, model=model), "sgs", sgs, plain, source)
        for label, model, plain, sgs in lines
    )
    return Table(name, "SGS Table 4: seventeen models on CIFAR-100", rows, _THREE_RUNS)


def _table_5() -> Table:
    name = "sgs-table-5"
    source = (
        "the search for k, VGG-11 with the ablation settings; which search stands in Table 5 and its numbers are not "
        "at hand, and the range of k is ours"
    )
    rows = tuple(
        Row(name, f"k = {k:g}", replace(_ABLATION, sgs=replace(_ABLATION.sgs, k=k)), "sgs", None, None, source)
        for k in K_GRID
    )
    return Table(name, "SGS Table 5: the search for k, VGG-11 on CIFAR-100", rows, _THREE_RUNS)


def _table_6() -> Table:
    name = "sgs-table-6"
    # The one plain number of Table 6 that is at hand; the baseline with these settings is SGD with momentum.
    plain = {"SGD + momentum": 68.6}
    source = (
        "Table 6, ablation settings; of its numbers only 68.6 is at hand, read as the plain net's with SGD + momentum; "
        "learning rates are ours: 0.1 for SGD, elsewhere PyTorch's defaults"
    )
    decay = _ABLATION.optimizer.weight_decay
    lines = (
        ("SGD", OptimizerSettings("sgd", lr=0.1, momentum=0.0, weight_decay=decay)),
        ("SGD + momentum", _ABLATION.optimizer),
        ("Adadelta", OptimizerSettings("adadelta", lr=1.0, weight_decay=decay)),
        ("Adagrad", OptimizerSettings("adagrad", lr=0.01, weight_decay=decay)),
        ("Adagrad*", OptimizerSettings("adagrad", lr=0.01, weight_decay=decay)),
        ("Adam", OptimizerSettings("adam", lr=1e-3, weight_decay=decay)),
        ("Adamax", OptimizerSettings("adamax", lr=2e-3, weight_decay=decay)),
        ("NAdam", OptimizerSettings("nadam", lr=2e-3, weight_decay=decay)),
        ("RAdam", OptimizerSettings("radam", lr=1e-3, weight_decay=decay)),
    )
    on_update = replace(_ABLATION.sgs, apply="update")
    rows = tuple(
        Row(
            name,
            label,
            replace(_ABLATION, optimizer=optimizer, sgs=on_update if label == "Adagrad*" else _ABLATION.sgs),
            "sgs",
            None,
            plain.get(label),
            source,
        )
        for label, optimizer in lines
    )
    return Table(name, "SGS Table 6: optimizers, VGG-11 on CIFAR-100 (*: SGS on the update)", rows, _THREE_RUNS)


def _figure_7() -> Table:
    name = "sgs-figure-7"
    source = (
        "the search for alpha and beta of Figure 7; its numbers, grid and settings are not at hand: the grid is ours, "
        "VGG-11 and the ablation settings are taken as for k"
    )
    rows = tuple(
        Row(
            name,
            f"alpha = {alpha:g}, beta = {beta:g}",
            replace(_ABLATION, sgs=replace(_ABLATION.sgs, alpha=alpha, beta=beta)),
            "sgs",
            None,
            None,
            source,
        )
        for alpha, beta in ALPHA_BETA_GRID
    )
    return Table(name, "SGS Figure 7: the search for a fixed scaling, VGG-11 on CIFAR-100", rows, _THREE_RUNS)


SGS_TABLES: tuple[Table, ...] = (
    _table_1(),
    _table_2(),
    _table_3(),
    _table_4(),
    _table_5(),
    _table_6(),
    _figure_7(),
)
