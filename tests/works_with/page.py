"""The page "Works with", made from the cases and from nothing else."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from works_with import deploying, distributed, frameworks, models, optimizers, precision, training
from works_with.case import Section, judged

PAGE = Path(__file__).parents[2] / "docs" / "works-with.md"
COMMAND = "cd tests && uv run --extra lab python -m works_with"

HEAD = f"""# Works with

Made by `{COMMAND}`, which runs the cases of `tests/works_with`, and by nothing else.
Each case trains a small network for a few steps, and has to end where the definitions of the methods end: the plain
gradient times the scaling, tap by tap, for SGS, and the gradient of powers of probabilities for PGT. It also has to end
elsewhere than plain training.

- **works**: with the lines of the README.
- **works with** something: with this instead of, or besides, these lines; what was found without it follows.
- **refused**: an error, or a warning while training goes on, with this message.
"""

OPTIMIZERS = (
    "Each optimizer of the library, given parameters and a learning rate. Those that divide the gradient by its own "
    "size cancel a scaling of it: of one whose centre is 10 times the other taps, *N of 10 left* is the ratio in what "
    f"20 steps move, 10 for all and 1 for none; a case works from {optimizers.ENOUGH:g} on."
)

SECTIONS = [
    Section("Precision", "", precision.precisions),
    Section("torch.compile", "", precision.compiled),
    Section("torch.compile to machine code", "", precision.inductor, slow=True),
    Section("Training", "", training.steps),
    Section("Averages of weights", "", training.averages),
    Section("Optimizers around optimizers", "", training.around_optimizers),
    Section("Layers", "", models.cases),
    Section("Models of other libraries", "", models.architectures, slow=True),
    Section("After training", "", deploying.cases),
    Section("torch.jit", "", deploying.compiled_ahead),
    Section("Frameworks", "", frameworks.cases, slow=True),
    Section("Two processes, gloo", "", distributed.cases, slow=True),
    Section("Optimizers of torch", OPTIMIZERS, lambda: optimizers.cases(optimizers.of_torch())),
    Section("Optimizers of schedulefree", "As above.", lambda: optimizers.cases(optimizers.of_schedule_free())),
    Section("Optimizers of timm", "As above.", lambda: optimizers.cases(optimizers.of_timm()), slow=True, grouped=True),
    Section(
        "Optimizers of pytorch_optimizer",
        "As above.",
        lambda: optimizers.cases(optimizers.of_pytorch_optimizer()),
        slow=True,
        grouped=True,
    ),
]

Verdicts = Mapping[str, tuple[str, str]]


def render(section: Section, verdicts: Verdicts) -> str:
    """Return a section of the page."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, found in verdicts.items():
        rows.setdefault(found if section.grouped else (name, name), []).append(name)
    lines = [f"| {', '.join(names)} | {' | '.join(verdicts[names[0]])} |" for names in rows.values()]
    text = f"{section.text}\n\n" if section.text else ""
    return f"## {section.title}\n\n{text}| | SGS | PGT |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def read(page: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Return the verdicts of a page, by section and case."""
    sections = {}
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title = part.split("\n", 1)[0]
        rows = re.findall(r"^\| (?!\|)(.+?) \| (.+?) \| (.+?) \|$", part, re.MULTILINE)
        section = next((section for section in SECTIONS if section.title == title), None)
        if section is None:
            continue
        sections[title] = {
            name: (sgs, pgt) for names, sgs, pgt in rows for name in (names.split(", ") if section.grouped else [names])
        }
    return sections


def write(titles: Sequence[str] = ()) -> None:
    """Run the cases of the sections with these titles, or all, and write the page; keep the other sections."""
    for section in SECTIONS:
        if not titles or section.title in titles:
            verdicts = judged(section)
            written = read(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
            PAGE.write_text(page(written | {section.title: verdicts}), encoding="utf-8")


def page(verdicts: Mapping[str, Verdicts]) -> str:
    """Return the page of the sections that have verdicts; it names the others."""
    parts = [render(section, verdicts[section.title]) for section in SECTIONS if section.title in verdicts]
    if missing := [section.title for section in SECTIONS if section.title not in verdicts]:
        parts.append(f"## Not run\n\n{', '.join(missing)}.\n")
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n".join([HEAD, *parts, f"Versions: {versions}.\n"])


LIBRARIES = ("torch", "timm", "schedulefree", "pytorch_optimizer", "lightning", "transformers", "accelerate")
