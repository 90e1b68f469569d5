"""Tables 1 to 3 of the SGS paper (Detkov et al., ICLR 2023), the searches of its section 4, and Figure 8.

Numbers stand as the paper prints them. A method in the first column marked with * is taken from the DyRep paper.
"""

from dataclasses import replace

from backpass.experiments.entry import Entry, Published
from backpass.experiments.recipes.sgs import CIFAR_600, IMAGENET_120, SGS_ABLATION
from backpass.experiments.search import ALPHA_BETA_GRID, AUTOCORRELATION_K_GRID, K_GRID
from backpass.experiments.study import make_key
from backpass.experiments.tables.table import Table
from backpass.experiments.tuning import VALIDATION, Space, Tuning
from backpass.training.recipe import DataSettings, Recipe

__all__ = ["SGS_SEARCHES", "SGS_TABLES"]

_METHODS = {"Origin": "plain", "DBB": "dbb_dyrep", "DyRep": "dyrep", "SGS": "sgs"}
_RESNETS = {"ResNet-18": "timm/resnet18", "ResNet-34": "timm/resnet34", "ResNet-50": "timm/resnet50"}
_SEED = "the configuration files set 42 + rank"
_CONFIGURATION = "settings of section {}, completed by the configuration files"
_STARRED = "taken by the SGS paper from the DyRep paper, not run"
_UNSTATED = "the paper does not state the number of runs of its searches; 3 is ours"

# Method, GPU hours, FLOPs in M, parameters in M, accuracy, spread.
_Line = tuple[str, float, float, float, float, float | None]
_TABLE_1: dict[str, tuple[_Line, ...]] = {
    "CIFAR-10": (
        ("Origin", 2.3, 313, 15.0, 94.90, 0.07),
        ("DBB*", 9.4, 728, 34.7, 94.97, 0.06),
        ("DBB", 7.0, 728, 34.7, 95.00, 0.1),
        ("DyRep*", 6.9, 597, 26.4, 95.22, 0.13),
        ("DyRep", 7.2, 674, 25.5, 95.00, 0.06),
        ("SGS", 2.5, 313, 15.0, 95.20, 0.05),
    ),
    "CIFAR-100": (
        ("Origin", 2.3, 314, 15.0, 73.70, 0.1),
        ("DBB*", 9.4, 728, 34.7, 74.04, 0.08),
        ("DBB", 7.0, 728, 34.7, 74.40, 0.1),
        ("DyRep*", 6.7, 582, 27.1, 74.37, 0.11),
        ("DyRep", 6.4, 560, 22.8, 74.10, 0.2),
        ("SGS", 2.5, 313, 15.0, 75.50, 0.1),
    ),
}

# Method, GPU days, FLOPs in G, parameters in M, accuracy, spread.
_TABLE_2: dict[str, tuple[_Line, ...]] = {
    "ResNet-18": (
        ("Origin", 4.8, 1.81, 11.7, 71.13, 0.04),
        ("DBB*", 8.1, 4.13, 26.3, 70.99, None),
        ("DyRep*", 6.3, 2.42, 16.9, 71.58, None),
        ("DyRep", 9.1, 2.92, 22.1, 71.50, 0.03),
        ("SGS", 5.1, 1.81, 11.7, 71.65, 0.05),
    ),
    "ResNet-34": (
        ("Origin", 5.3, 3.66, 21.8, 74.17, 0.05),
        ("DBB*", 12.8, 8.44, 49.9, 74.33, None),
        ("DyRep*", 7.7, 4.72, 33.1, 74.68, None),
        ("DyRep", 10.6, 4.95, 38.3, 74.40, 0.03),
        ("SGS", 5.8, 3.66, 21.8, 74.62, 0.05),
    ),
    "ResNet-50": (
        ("Origin", 7.5, 4.09, 25.6, 76.95, 0.05),
        ("DBB*", 13.7, 6.79, 40.7, 76.71, None),
        ("DyRep*", 8.5, 5.05, 31.5, 77.08, None),
        ("DyRep", 11.0, 5.84, 38.3, 77.11, 0.03),
        ("SGS", 7.9, 4.09, 25.6, 77.10, 0.01),
    ),
}


def _peers(group: str, lines: tuple[_Line, ...], recipe: Recipe, section: str) -> list[Entry]:
    """Return the entries of one model and data set; the first line is the baseline."""
    entries: list[Entry] = []
    for name, cost, flops, params, accuracy, std in lines:
        copied = name.endswith("*")
        entries.append(
            Entry(
                key=make_key(group, name.replace("*", "-published")),
                label=f"{group}, {name}",
                method=_METHODS[name.rstrip("*")],
                recipe=None if copied else recipe,
                baseline=entries[0].key if entries else None,
                published=Published(accuracy, std, cost, flops, params, copied=copied),
                note=_STARRED if copied else _CONFIGURATION.format(section),
            )
        )
    return entries


def _table_1() -> Table:
    data = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
    entries = [
        entry
        for label, lines in _TABLE_1.items()
        for entry in _peers(label, lines, replace(CIFAR_600, data=DataSettings(name=data[label])), "4.1")
    ]
    return Table(
        name="sgs-table-1",
        title="SGS Table 1: VGG-16 on CIFAR-10 and CIFAR-100",
        entries=tuple(entries),
        seeds=5,
        repetitions=f"averaged over 5 independent replicas; {_SEED}",
        cost_unit="GPU hours",
        flops_unit="M",
        notes=("DBB is the fixed block of DyRep's code, dbb_dyrep", "FLOPs and parameters of DyRep are averages"),
    )


def _table_2() -> Table:
    entries = [
        entry
        for label, lines in _TABLE_2.items()
        for entry in _peers(label, lines, replace(IMAGENET_120, model=_RESNETS[label]), "4.2")
    ]
    return Table(
        name="sgs-table-2",
        title="SGS Table 2: ResNets on ImageNet",
        entries=tuple(entries),
        seeds=3,
        repetitions=f"averaged over 3 seeds; {_SEED}",
        cost_unit="GPU days",
        flops_unit="G",
        notes=("the paper prints a momentum of 0.1; the configuration files' 0.9 is used",),
    )


def _table_3() -> Table:
    sgs = SGS_ABLATION.sgs
    autocorrelation = replace(SGS_ABLATION, sgs=replace(sgs, measure="autocorrelation"))
    as_acb = replace(SGS_ABLATION, sgs=replace(sgs, branches=("3x3", "1x3", "3x1")))
    settings = _CONFIGURATION.format("4.3")
    searched = "the paper prints its grid and not what it chose"
    pairs = (("sgs.alpha,sgs.beta", tuple(f"{alpha:g},{beta:g}" for alpha, beta in ALPHA_BETA_GRID)),)
    ks = _k_space(AUTOCORRELATION_K_GRID)
    ours = "a line of ours: the scaling that Lemma 1 gives for ACB's branches, at mean 1"

    def entry(
        label: str, method: str, recipe: Recipe, published: Published | None, note: str, space: Space = ()
    ) -> Entry:
        baseline = None if label == "Origin" else "Origin"
        return Entry(make_key(label), label, method, recipe, baseline, published=published, note=note, space=space)

    entries = (
        entry("Origin", "plain", SGS_ABLATION, Published(69.6, 0.1, 0.40), settings),
        entry("Grid Search", "sgs", SGS_ABLATION, Published(71.0, 0.1, 19.6), searched, pairs),
        entry("Autocorrelation", "sgs", autocorrelation, Published(71.1, 0.2, 0.42), searched, ks),
        entry("SGS", "sgs", SGS_ABLATION, Published(71.5, 0.1, 0.42), settings),
        entry("fixed, as ACB", "sgs", as_acb, None, ours),
    )
    return Table(
        name="sgs-table-3",
        title="SGS Table 3: what the scaling follows from, VGG-11 on CIFAR-100",
        entries=entries,
        seeds=3,
        repetitions=f"the paper does not state the number of runs, 3 as in its other tables; {_SEED}",
        cost_unit="GPU hours",
        notes=("SGS has the k of section 4, found on VGG-16; the number of runs of each search point, 1, is ours",),
        tuning=Tuning(seeds=(1000,), unequal=True),
    )


def _k_space(grid: tuple[float, ...]) -> Space:
    return (("sgs.k", tuple(f"{k:g}" for k in grid)),)


def _search_for_k() -> Table:
    vgg16 = replace(CIFAR_600, data=DataSettings(name="cifar100"))
    return Table(
        name="sgs-k",
        title="SGS section 4.1: the search for k, VGG-16 on CIFAR-100, and training with it",
        entries=(
            Entry("plain", "plain", "plain", vgg16),
            Entry("sgs", "SGS", "sgs", vgg16, "plain", space=_k_space(K_GRID)),
        ),
        seeds=3,
        repetitions=_UNSTATED,
        notes=("the paper chooses k = 5 (section 4.3, Appendix A.1); Table 1 has its accuracies",),
        tuning=Tuning(seeds=(1000, 1001, 1002)),
    )


def _figure_7() -> Table:
    recipe = replace(SGS_ABLATION, data=replace(SGS_ABLATION.data, validation=VALIDATION))
    entries = [Entry("plain", "plain", "plain", recipe)]
    for alpha, beta in ALPHA_BETA_GRID:
        label = f"alpha = {alpha:g}, beta = {beta:g}"
        fixed = replace(recipe, sgs=replace(recipe.sgs, alpha=alpha, beta=beta))
        entries.append(Entry(make_key(label), label, "sgs", fixed, "plain"))
    return Table(
        name="sgs-figure-7",
        title="SGS Figure 7: the grid search for a fixed scaling, VGG-11 on CIFAR-100",
        entries=tuple(entries),
        seeds=3,
        repetitions=_UNSTATED,
        notes=(
            f"accuracy on {VALIDATION:.0%} of the training images, held out; the paper prints no number of this search",
            "alpha = beta = 1 is plain training",
        ),
    )


def _figure_8() -> Table:
    models = {
        "VGG-16, CIFAR-100": replace(CIFAR_600, data=DataSettings(name="cifar100")),
        **{f"{label}, ImageNet": replace(IMAGENET_120, model=model) for label, model in _RESNETS.items()},
    }
    entries: list[Entry] = []
    for label, recipe in models.items():
        baseline = make_key(label, "plain")
        entries.append(Entry(baseline, label, "plain", recipe))
        entries += [
            Entry(make_key(label, f"k={k:g}"), f"{label}, k = {k:g}", "sgs", replace(recipe, sgs=sgs), baseline)
            for k in K_GRID
            for sgs in [replace(recipe.sgs, k=k)]
        ]
    return Table(
        name="sgs-figure-8",
        title="SGS Figure 8: accuracy over k",
        entries=tuple(entries),
        seeds=3,
        repetitions="the paper does not state the number of runs; 3 is ours",
        notes=("the figure's numbers are not printed; its k are taken to be those of section 4.1",),
    )


SGS_TABLES: tuple[Table, ...] = (_table_1(), _table_2(), _table_3())
SGS_SEARCHES: tuple[Table, ...] = (_search_for_k(), _figure_7(), _figure_8())
