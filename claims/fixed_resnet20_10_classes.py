"""Claim: the methods against plain training at the papers' fixed settings, ResNet-20, 10 classes."""

from backpass.experiments import compare_study
from claim import CPU_SEEDS, Claim
from settings import TEN_CLASSES, on_cpu

CLAIM = Claim(
    question="At the fixed settings of the SGS paper (learning rate 0.1, decay 5e-4, k = 5) and alpha = 0.3, how does "
    "each method change the test accuracy of ResNet-20 on 10 classes with 1,250 images each?",
    study=compare_study(on_cpu(TEN_CLASSES, "resnet20"), ("plain", "sgs", "pgt", "sgs+pgt"), range(10)),
    smallest=1.0,
    seeds_from=CPU_SEEDS,
)
