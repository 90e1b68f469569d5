"""What a claim is: a question, the study that answers it, and the rule by which it does, all fixed before its runs."""

from dataclasses import dataclass, field

from backpass.experiments import Study
from backpass.training.recipe import Runtime

__all__ = ["BFLOAT16", "CPU", "DIGITS_SEEDS", "Claim"]

DIGITS_SEEDS = (
    "A difference of 0.5 points, at a standard deviation of 0.7 points of the paired differences (five seeds of an "
    "earlier study: 0.5, 0.5, 1.0), is told at p < 0.05 / 3 with power 0.9 by 30 seeds."
)
CPU = Runtime(device="cpu", channels_last=True)
BFLOAT16 = Runtime(precision="bf16", channels_last=True)


@dataclass(frozen=True)
class Claim:
    """A question and how it is answered.

    The verdict on each entry of the study that has a baseline follows from the paired t-test over common seeds, with
    Holm's correction over these entries: a gain or a loss where the corrected p-value is below ``level``; no difference
    of interest where the 95 % confidence interval lies within ``smallest`` on both sides of 0; otherwise inconclusive.
    The smallest difference that could have been detected is given with each.

    Attributes:
        question: in one sentence.
        study: entries with their search spaces, seeds, baselines and tuning.
        smallest: the smallest difference of interest, in points.
        seeds_from: the power calculation, or what else the number of seeds comes from.
        level: of the test, over all entries together.
        stopping: when runs end.
        runtime: how every run is computed.
        superseded_by: name of the claim that has the same question and another ``runtime``, where this one was stopped
            without a verdict.
    """

    question: str
    study: Study
    smallest: float
    seeds_from: str
    level: float = 0.05
    stopping: str = "Every run of the study is made; no verdict is given before the last, and no run is left out."
    runtime: Runtime = field(default=CPU)
    superseded_by: str | None = None
