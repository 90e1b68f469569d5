"""ImageNet ResNets without normalisation under AGC, with and without PGT: a table of our own.

Settings follow the papers that a row's ``source`` names; none of their numbers belong to these runs.
"""

from dataclasses import replace

from backpass.experiments.recipes.pgt import PGT_IMAGENET
from backpass.experiments.recipes.table import Row, Table
from backpass.training.recipe import OptimizerSettings, PgtSettings, ScheduleSettings

__all__ = ["NF_IMAGENET", "NORM_FREE_TABLES"]

# The NFNet code's optimizer: SGD with Nesterov momentum, 0.1 for every 256 images, decay 2e-5 on kernels and matrices
# alone, 5 warm-up epochs, cosine to 0. Length, batch and augmentation are ours: those of the PGT runs, without a
# cool-down, since the cosine ends at 0.
NF_IMAGENET = replace(
    PGT_IMAGENET,
    model="nf_resnet50",
    epochs=90,
    optimizer=OptimizerSettings(
        lr=0.1 * PGT_IMAGENET.batch_size / 256,
        momentum=0.9,
        nesterov=True,
        weight_decay=2e-5,
        decay_norm_and_bias=False,
    ),
    schedule=ScheduleSettings(final_lr=0.0, warmup_epochs=5),
    pgt=PgtSettings(alpha=0.3),
)


def _norm_free() -> Table:
    name = "norm-free"
    ours = "a table of our own: no published numbers of these runs are at hand"
    clipping = "the clipping's settings are the defaults of its own paper (arXiv 2102.06171)"
    alpha = "alpha is the published one of ResNet-50"
    nfnet = f"{ours}; optimizer and schedule of the NFNet code; {clipping}; {alpha}; length and batch are ours"
    pgt = f"{ours}; settings of the PGT paper; {clipping}; {alpha}"
    no_norm = replace(PGT_IMAGENET, model="nonorm_resnet50", pgt=PgtSettings(alpha=0.3))
    lines = (
        ("NF-ResNet-26, AGC", replace(NF_IMAGENET, model="nf_resnet26"), nfnet),
        ("NF-ResNet-50, AGC", NF_IMAGENET, nfnet),
        ("no-norm ResNet-50, AGC", no_norm, pgt),
    )
    rows = tuple(
        Row(name, label, recipe, "pgt+agc", None, None, source, baseline="agc") for label, recipe, source in lines
    )
    return Table(name, "ResNets without normalisation on ImageNet, AGC with and without PGT", rows, "none, our table")


NORM_FREE_TABLES: tuple[Table, ...] = (_norm_free(),)
