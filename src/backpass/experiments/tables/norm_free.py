"""ImageNet ResNets without normalisation under AGC, with and without PGT: a table of our own."""

from dataclasses import replace

from backpass.experiments.entry import Entry
from backpass.experiments.recipes.norm_free import NF_IMAGENET
from backpass.experiments.recipes.pgt import PGT_IMAGENET
from backpass.experiments.study import make_key
from backpass.experiments.tables.table import Table
from backpass.training.recipe import PgtSettings

__all__ = ["NORM_FREE_TABLES"]

_CLIPPING = "the clipping's settings are the defaults of its own paper (arXiv 2102.06171)"
_ALPHA = "alpha is the published one of ResNet-50"


def _norm_free() -> Table:
    nfnet = f"optimizer and schedule of the NFNet code; {_CLIPPING}; {_ALPHA}; length and batch are ours"
    pgt = f"settings of the PGT runs; {_CLIPPING}; {_ALPHA}"
    no_norm = replace(PGT_IMAGENET, model="nonorm_resnet50", model_args=(), pgt=PgtSettings(alpha=0.3))
    entries: list[Entry] = []
    for label, recipe, note in (
        ("NF-ResNet-26, AGC", replace(NF_IMAGENET, model="nf_resnet26"), nfnet),
        ("NF-ResNet-50, AGC", NF_IMAGENET, nfnet),
        ("no-norm ResNet-50, AGC", no_norm, pgt),
    ):
        baseline = make_key(label, "agc")
        entries.append(Entry(baseline, label, "agc", recipe, note=note))
        entries.append(Entry(make_key(label, "pgt+agc"), label, "pgt+agc", recipe, baseline, note=note))
    return Table(
        name="norm-free",
        title="ResNets without normalisation on ImageNet, AGC with and without PGT",
        entries=tuple(entries),
        seeds=3,
        repetitions="a table of our own, without published numbers",
    )


NORM_FREE_TABLES: tuple[Table, ...] = (_norm_free(),)
