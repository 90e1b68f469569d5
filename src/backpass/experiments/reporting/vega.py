"""The JavaScript of Vega, Vega-Lite and Vega-Embed, as one text to write into a page."""

from importlib.metadata import version
from pathlib import Path

from backpass.training.checkpoint import atomic_write

__all__ = ["vega_bundle"]


def vega_bundle() -> str:
    """Return the script that draws the charts of a page, about 0.9 MB; it defines ``vegaEmbed`` and loads nothing.

    It comes from vl-convert, the converter that Altair uses too. Putting it together takes seconds, so the user's cache
    keeps it; where there is none to write to, it is made again.
    """
    # Here, since a process that writes no report needs neither.
    import vl_convert
    from platformdirs import user_cache_path

    versions = (version("vl-convert-python"), vl_convert.get_vega_version(), vl_convert.get_vega_embed_version())
    path = user_cache_path("backpass") / f"vega-{'-'.join(versions)}.js"
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        bundle = _inlinable(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub asks for a snippet
    _keep(path, bundle)
    return bundle


def _inlinable(script: str) -> str:
    """Return a script that does not end the element that holds it."""
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _keep(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
    except OSError:
        return  # A read-only home has no cache.
