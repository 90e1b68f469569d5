"""The page holds what its cases give, and a case gives what running it found."""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from backpass.errors import BackpassWarning, InputError, missing_extra
from backpass.sgs.optimizers import normalizes_gradients, undoes_updates
from works_with.case import CancelledError, NotInstalledError, Section, Way, judged, verdict
from works_with.optimizers import ENOUGH, of_pytorch_optimizer, of_schedule_free, of_timm, of_torch
from works_with.page import PAGE, SECTIONS, read, render


@pytest.mark.parametrize(
    "section", [pytest.param(s, id=s.title, marks=[pytest.mark.slow] if s.slow else []) for s in SECTIONS]
)
def test_the_page_holds_what_the_cases_give(section: Section) -> None:
    written = read(PAGE.read_text(encoding="utf-8"))
    if section.title not in written:
        assert section.title in PAGE.read_text(encoding="utf-8").split("## Not run")[1]
        pytest.skip(f"not run: cd tests && python -m works_with '{section.title}'")
    try:
        found = judged(section)
    except NotInstalledError as error:
        pytest.skip(str(error))
    assert found == written[section.title]


OPTIMIZERS = {
    "Optimizers of torch": of_torch,
    "Optimizers of schedulefree": of_schedule_free,
    "Optimizers of timm": of_timm,
    "Optimizers of pytorch_optimizer": of_pytorch_optimizer,
}
# Names that do not tell: the class Muon is more than one optimizer, and RMSpropTF divides by a size that starts at one.
UNTOLD = re.compile("n?adamuon|c?rmsproptf")


@pytest.mark.parametrize("title", OPTIMIZERS)
def test_what_undoes_a_scaling_on_the_page_is_known_by_name(title: str) -> None:
    try:
        makes = OPTIMIZERS[title]()
    except ImportError as error:
        pytest.skip(str(error))
    mistaken = {}
    for name, (verdict_on_sgs, _) in read(PAGE.read_text(encoding="utf-8"))[title].items():
        if name not in makes or verdict_on_sgs.startswith("not run") or UNTOLD.match(name):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = makes[name]([nn.Parameter(torch.ones(2, 2, 3, 3))])
        left = float((re.findall(r"([\d.]+) of 10 left", verdict_on_sgs) or ["10"])[0])
        undone = "undoes a scaling" in verdict_on_sgs
        cancelled = left < 2.5 and not undone
        known = (undoes_updates(optimizer), normalizes_gradients(optimizer))
        if known[0] != undone or (cancelled and not known[1]) or (known[1] and left > ENOUGH):
            mistaken[name] = verdict_on_sgs
    assert mistaken == {}


def raising(error: BaseException | None) -> Callable[[], None]:
    def check() -> None:
        if error is not None:
            raise error

    return check


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([None], "works"),
        ([InputError("no a"), None], "works with `call 1`; without: refused: *no a*"),
        ([BackpassWarning("no a"), InputError("no b")], "refused: *no a*; with `call 1`: refused: *no b*"),
        ([CancelledError("1.0 of 10 left"), None], "works with `call 1`; without: 1.0 of 10 left"),
        ([CancelledError("1.0 of 10 left")], "1.0 of 10 left"),
    ],
)
def test_the_verdict_is_what_running_the_ways_found(errors: list[BaseException | None], expected: str) -> None:
    ways = [Way(f"`call {number}`" if number else "", raising(error)) for number, error in enumerate(errors)]
    assert verdict(ways) == expected


def test_a_wrong_result_is_no_verdict() -> None:
    with pytest.raises(AssertionError, match="not close"):
        verdict([Way("", raising(AssertionError("not close"))), Way("`call`", raising(None))])


def test_a_library_that_is_not_installed_is_no_verdict() -> None:
    for error in (ImportError("x"), missing_extra("x", "lab", "these")):
        with pytest.raises(NotInstalledError, match="x"):
            verdict([Way("", raising(error)), Way("`call`", raising(None))])


@pytest.mark.parametrize("title", ["Precision", "Optimizers of timm"])
def test_what_is_written_is_read_again(title: str) -> None:
    (section,) = (section for section in SECTIONS if section.title == title)
    verdicts = {"a": ("works", "works"), "b": ("works with `c, d`", "works"), "c": ("works", "works")}
    assert read(render(section, verdicts)) == {title: verdicts}
