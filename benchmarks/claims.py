"""The claims about cost and speed as data: what is claimed of which raw file, and the bound that it has to keep.

A claim holds when the 95 % confidence interval of the mean lies within its bounds, and fails when it lies outside; in
between it is inconclusive. Where a file has several settings, such as sizes, the worst of them decides.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paper import RELATIVE_TIME
from sections import loss_ratios
from tools import mean_interval

__all__ = ["CLAIMS", "Claim", "Verdict", "judge"]

BySetting = Mapping[str, Sequence[float]]

_PEER_MARGIN = 0.15
"""Largest relative difference between a peer's relative time here and in the paper."""


@dataclass(frozen=True)
class Claim:
    """A claim about values in a raw file.

    Attributes:
        subject: what is claimed about, in words.
        file: stem of the raw file.
        values: takes them from the file's content, by setting.
        low: lower bound; ``None``: none.
        high: upper bound.
        origin: of the bounds.
    """

    subject: str
    file: str
    values: Callable[[Any], BySetting]
    low: float | None = None
    high: float | None = None
    origin: str = "ours"

    @property
    def required(self) -> str:
        """The bounds in words."""
        ends = [text for text, end in (("at least", self.low), ("at most", self.high)) if end is not None]
        if len(ends) == 2:
            return f"{self.low:.3g} to {self.high:.3g} ({self.origin})"
        return f"{ends[0]} {self.low if self.high is None else self.high:.3g} ({self.origin})"


@dataclass(frozen=True)
class Verdict:
    """What the values say of a claim.

    Attributes:
        setting: the worst one; empty where there is one only.
        mean: of its values.
        low: lower end of the interval; ``None`` for a single value.
        high: upper end.
        n: number of values.
        verdict: ``held``, ``not held``, ``inconclusive`` or ``single value``.
    """

    setting: str
    mean: float
    low: float | None
    high: float | None
    n: int
    verdict: str


def judge(claim: Claim, content: Any) -> Verdict | None:
    """Return the verdict on a claim by the setting that keeps its bounds least; ``None`` without values."""
    settings = {name: values for name, values in claim.values(content).items() if values}
    found = [_judge(claim, name if len(settings) > 1 else "", values) for name, values in settings.items()]
    order = ("not held", "inconclusive", "single value", "held")
    return min(found, key=lambda v: (order.index(v.verdict), _margin(claim, v)), default=None)


def _judge(claim: Claim, setting: str, values: Sequence[float]) -> Verdict:
    interval = mean_interval(values)
    if interval is None:
        return Verdict(setting, values[0], None, None, 1, "single value")
    mean, low, high = interval
    least = -math.inf if claim.low is None else claim.low
    most = math.inf if claim.high is None else claim.high
    held = least <= low and high <= most
    failed = high < least or low > most
    text = "held" if held else "not held" if failed else "inconclusive"
    return Verdict(setting, mean, low, high, len(values), text)


def _margin(claim: Claim, verdict: Verdict) -> float:
    """Return how far inside its bounds the interval ends; negative outside."""
    low = verdict.mean if verdict.low is None else verdict.low
    high = verdict.mean if verdict.high is None else verdict.high
    below = math.inf if claim.low is None else low - claim.low
    above = math.inf if claim.high is None else claim.high - high
    return min(below, above)


# Where the values stand in the raw files


def _relative_times(method: str) -> Callable[[Any], BySetting]:
    def values(content: Any) -> BySetting:
        rows = [r["methods"] for r in content["results"] if r["model"] == "vgg16_small"]
        return {"": rows[0].get(method, {}).get("run_ratios", [])} if rows else {}

    return values


def _memory(content: Any) -> BySetting:
    rows = [r["methods"] for r in content["results"] if r["model"] == "vgg16_small"]
    return {"": [rows[0]["sgs+pgt"]["memory_ratio"]]} if rows and "sgs+pgt" in rows[0] else {}


def _share(size: int) -> Callable[[Any], BySetting]:
    return lambda content: {"": [v for row in content["step"] if row["size"] == size for v in row["scale_share"]]}


def _published(what: str) -> Callable[[Any], BySetting]:
    def values(content: Any) -> BySetting:
        rows = [row for row in content["rows"] if row["what"] == what]
        if what == "update":  # the claim is about the most images
            rows = [row for row in rows if row["images"] == max(r["images"] for r in rows)]
        return {f"{r['model']}, {r['memory_format']}, {r['images']} images": r["ratios"] for r in rows}

    return values


def _published_memory(content: Any) -> BySetting:
    rows = [row for row in content["rows"] if row["what"] == "update"]
    most = max((row["images"] for row in rows), default=0)
    return {
        f"{r['model']}, {r['memory_format']}": [r["memory_mb"]["published"] / r["memory_mb"]["ours"]]
        for r in rows
        if r["images"] == most
    }


def _loss(compiled: bool) -> Callable[[Any], BySetting]:
    return lambda content: {
        "x".join(map(str, r["shape"])): loss_ratios(r) for r in content["results"] if r["compiled"] == compiled
    }


def _throughput(content: Any) -> BySetting:
    return {f"{r['model']}, batch {r['batch']}": r["ratios"] for r in content["results"]}


def _claims() -> Iterable[Claim]:
    for device, throughput in (("cpu", 0.95), ("cuda", 0.97)):
        vgg = f"relative time of a whole run, VGG-16, {device}"
        cost = f"cost-{device}"
        published = RELATIVE_TIME["vgg16_small"]
        yield Claim(f"sgs: {vgg}", cost, _relative_times("sgs"), high=published["sgs"], origin="paper")
        yield Claim(f"sgs+pgt: {vgg}", cost, _relative_times("sgs+pgt"), high=1.01)
        yield Claim(f"sgs+pgt: relative peak memory, VGG-16, {device}", cost, _memory, high=1.01)
        for method in ("dbb_dyrep", "dyrep"):
            paper = published[method]
            bounds = {"low": (1 - _PEER_MARGIN) * paper, "high": (1 + _PEER_MARGIN) * paper}
            origin = f"paper: {paper:.3g}, +-{100 * _PEER_MARGIN:.0f} %"
            yield Claim(f"{method}: {vgg}", cost, _relative_times(method), **bounds, origin=origin)
        for size, share in ((32, 0.01), (128, 0.005)):
            subject = f"scale_gradients, fraction of a VGG-16 step at batch {size}, {device}"
            yield Claim(subject, f"sgs-{device}", _share(size), high=share)
        for compiled, most in ((False, 2.0), (True, 1.2)):
            mode = "compiled" if compiled else "eager"
            subject = f"PowerGrad loss, time relative to cross-entropy, {mode}, {device}"
            yield Claim(subject, f"pgt-{device}", _loss(compiled), high=most)
        subject = f"trainer, images per second relative to a bare loop, {device}"
        yield Claim(subject, f"throughput-{device}", _throughput, low=throughput)
    file = "sgs-published-cpu"
    yield Claim("SGS update, times faster than the published one, most images", file, _published("update"), low=2.0)
    yield Claim("SGS estimator alone, times faster than the published one", file, _published("estimate"), low=3.5)
    yield Claim("SGS update, times less memory than the published one", file, _published_memory, low=30.0)


CLAIMS: tuple[Claim, ...] = tuple(_claims())
