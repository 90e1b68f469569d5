"""A case of the page "Works with": ways to use SGS and PGT somewhere, tried in order until one works."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from backpass.errors import BackpassError, BackpassWarning

Check = Callable[[], object]


class CancelledError(Exception):
    """A way runs, and its effect is cancelled; the text says how much of it is left."""


@dataclass(frozen=True)
class Way:
    """One way to use a method.

    Attributes:
        call: what differs from the lines of the README, as Markdown; empty for these lines.
        check: trains, and raises an AssertionError unless the result is what the definition of the method gives.
    """

    call: str
    check: Check


@dataclass(frozen=True)
class Case:
    """One row of the page.

    Attributes:
        name: what the methods are used with.
        sgs: the ways to use SGS there.
        pgt: the ways to use PGT there.
    """

    name: str
    sgs: Sequence[Way]
    pgt: Sequence[Way]


@dataclass(frozen=True)
class Section:
    """One table of the page.

    Attributes:
        title: its heading.
        text: a sentence under it.
        cases: makes its cases. Libraries are imported there, so that an absent one is noticed when the cases are run.
        slow: running the cases takes more than a few seconds.
        grouped: cases with the same verdicts share a row.
    """

    title: str
    text: str
    cases: Callable[[], Sequence[Case]]
    slow: bool = False
    grouped: bool = False


class NotInstalledError(Exception):
    """A library that the case needs is not installed."""


def verdict(ways: Sequence[Way]) -> str:
    """Return what running the ways found: "works", "works with ...", "refused: ..." or what is left.

    Raises:
        AssertionError: a way gives wrong results and nothing says so.
        NotInstalledError: a library is not installed.
    """
    found: list[str] = []
    for way in ways:
        try:
            with strictly():
                way.check()
        except CancelledError as rest:
            found.append(str(rest))
        except (BackpassError, BackpassWarning) as refusal:
            if isinstance(refusal, ImportError):
                raise NotInstalledError(str(refusal)) from refusal
            found.append(f"refused: *{refusal}*")
        except (ImportError, pytest.skip.Exception) as error:
            raise NotInstalledError(str(error)) from error
        else:
            without = f"; without: {found[0]}" if found else ""
            return f"works with {way.call}{without}" if way.call else "works"
    return "; ".join(f"with {way.call}: {text}" if way.call else text for way, text in zip(ways, found, strict=True))


@contextmanager
def strictly() -> Iterator[None]:
    """Turn our warnings into errors, and leave those of other libraries aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", BackpassWarning)
        yield


def judged(section: Section) -> dict[str, tuple[str, str]]:
    """Return the verdicts on SGS and PGT by the name of the case; run each case."""
    return {case.name: (verdict(case.sgs), verdict(case.pgt)) for case in section.cases()}
