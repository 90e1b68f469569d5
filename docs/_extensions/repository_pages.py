"""Pages that share text with files of the repository, so that each fact stands in one file.

``<!-- card: sgs Limits -->`` becomes that section of the method card ``src/backpass/sgs/README.md``, and
``<!-- verdicts: sgs -->`` the lines of the claims about a method; ``<!-- api: backpass.sgs -->`` becomes
the reference of that module. Links that lead out of ``docs`` become paths.
"""

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
_CARD = re.compile(r"^<!-- card: (\w+) (.+) -->$", re.MULTILINE)
_VERDICTS = re.compile(r"^<!-- verdicts: (\S+) -->$", re.MULTILINE)
_API = re.compile(r"^<!-- api: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)#\s]+)(#[^)]*)?\)")


def setup(app: "Sphinx") -> dict[str, bool]:
    """Rewrite each page as it is read."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _read(app: "Sphinx", name: str, source: list[str]) -> None:
    path = Path(app.env.doc2path(name))
    if path.suffix == ".md":
        source[0] = expand(source[0], path.parent)


def expand(text: str, folder: Path) -> str:
    """Return a page of a folder with its insertions made and the links that lead out of ``docs`` replaced."""
    text = _CARD.sub(lambda found: card_section(found[1], found[2], folder), text)
    text = _VERDICTS.sub(lambda found: verdicts(found[1], folder), text)
    text = _API.sub(lambda found: api(found[1]), text)
    return _LINK.sub(lambda found: _link(found[0], found[1], found[2], folder), text)


def card_section(package: str, heading: str, folder: Path) -> str:
    """Return the body of a section of a method card, with links as a page of ``folder`` needs them.

    Raises:
        LookupError: the card has no such section.
    """
    path = ROOT / "src" / "backpass" / package / "README.md"
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", path.read_text(encoding="utf-8"), re.S | re.M)
    if found is None:
        raise LookupError(f"expected a section {heading!r} in {path}, found none; name one of its headings")

    def from_here(link: re.Match[str]) -> str:
        target = os.path.relpath((path.parent / link[2]).resolve(), folder)
        return f"[{link[1]}]({target if target.startswith('.') else f'./{target}'}{link[3] or ''})"

    return _LINK.sub(from_here, found[1]).strip()


def verdicts(method: str, folder: Path) -> str:
    """Return the table of all claims, with the lines of one method that have a verdict."""
    lines = (DOCS / "claims.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    table = table[: next(n for n, line in enumerate(table[2:], 2) if line.startswith(("|:", "| entry")))]
    chosen = [line for line in table[2:] if re.search(rf"[|(] ?{re.escape(method)}[ )]", line) and "**" in line]
    page = os.path.relpath(DOCS / "claims.md", folder)
    if not chosen:
        return f"No claim compares it with plain training ([claims]({page}))."
    rows = [*table[:2], *(line.replace("](#", f"]({page}#") for line in chosen)]
    return "\n".join(rows)


def _link(whole: str, text: str, target: str, folder: Path) -> str:
    path = (folder / target).resolve()
    if not path.exists():
        return whole  # The build names it.
    if path.is_relative_to(DOCS):
        return whole
    shown = path.relative_to(ROOT).as_posix()
    return f"`{shown}`" if text in (path.name, shown) else f"{text} (`{shown}`)"


def api(module: str) -> str:
    """Return the directives that document every public name of a module, each where it is at home.

    Names that a module shares with a package of its own, such as ``backpass.SpatialGradientScaling``, are linked.
    """
    found = importlib.import_module(module)
    homes = {name: _home(module, getattr(found, name)) for name in getattr(found, "__all__", ())}
    linked = [f"- {{py:obj}}`{module}.{name} <{home}.{name}>`" for name, home in homes.items() if home != module]
    lines = [f".. automodule:: {module}\n   :no-members:"]
    for name, home in homes.items():
        value = getattr(found, name)
        if inspect.ismodule(value):
            # Those of backpass itself have pages of their own.
            lines += [f".. automodule:: {module}.{name}\n   :members:"] if module != "backpass" else []
            continue
        if home != module:
            continue
        if inspect.isclass(value):
            lines.append(f".. autoclass:: {module}.{name}\n   :members:")
        elif callable(value):
            lines.append(f".. autofunction:: {module}.{name}")
        else:
            keys = f"Keys: {', '.join(map(str, value))}." if isinstance(value, dict) else ""
            lines.append(f".. py:data:: {module}.{name}\n   :type: {type(value).__name__}\n\n   {keys}")
    own = "```{eval-rst}\n" + "\n\n".join(lines) + "\n```"
    return "\n\n".join([own, *(["Also here:", "\n".join(linked)] if linked else [])])


def _home(module: str, value: object) -> str:
    """Return the package whose page documents a value; ``backpass`` itself only collects from others."""
    return ".".join(getattr(value, "__module__", module).split(".")[:2]) if module == "backpass" else module
