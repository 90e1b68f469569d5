"""Which runs have been silent for too long, by the clock of the process that watches them."""

import time
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

__all__ = ["SilenceWatch"]


class SilenceWatch:
    """Watches the beats of running trials from one call to the next.

    Watching starts with the first call that sees a trial running, and again when half of the grace period has passed
    since the last call, because a worker may have beaten and been silent meanwhile.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}
        self._looked = 0.0

    def silent(self, running: Sequence[FrozenTrial], grace: float) -> list[FrozenTrial]:
        """Return the trials that have shown no beat for ``grace`` seconds of watching.

        Args:
            running: all trials that run, as just read.
            grace: the period.
        """
        now = time.monotonic()
        if 0 < grace / 2 < now - self._looked:
            self._seen.clear()
        self._looked = now
        silent = []
        for trial in running:
            beat = trial.user_attrs.get("beat")
            seen, since = self._seen.get(trial.number, (None, now))
            if trial.number not in self._seen or beat != seen:
                self._seen[trial.number] = (beat, now)
            elif now - since > grace:
                silent.append(trial)
        return silent
