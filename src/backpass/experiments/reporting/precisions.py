"""A note on runs that were computed in different precisions: what differs between entries may then come from these."""

from collections.abc import Sequence

from backpass.experiments.entry import Entry
from backpass.experiments.record import Record
from backpass.experiments.reporting.statistics import records_of

__all__ = ["precision_note"]

_WORDS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def precision_note(entries: Sequence[Entry], records: Sequence[Record]) -> str | None:
    """Return a note that names the precisions of each entry's runs; ``None``: all runs have one.

    Args:
        entries: of the study.
        records: of its runs.
    """
    found: dict[str, list[str]] = {}
    for entry in entries:
        for record in records_of(entry, records).values():
            word = _WORDS[record.environment.runtime.precision]
            if word not in found.setdefault(entry.name, []):
                found[entry.name].append(word)
    if len({word for words in found.values() for word in words}) < 2:
        return None
    listed = "; ".join(f"{name}: {' and '.join(words)}" for name, words in found.items())
    return f"computed in different precisions, from which differences may come: {listed}"
