"""Ways to damage a file."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["damaged"]

_VALUES = [None, True, -1, 0, 10**30, 1e400, "x", "", [], {}, [[]], "\x00", "../../x"]


def _flip(content: bytes, generator: random.Random) -> bytes:
    """Flip one bit."""
    if not content:
        return b"\0"
    altered = bytearray(content)
    altered[generator.randrange(len(altered))] ^= 1 << generator.randrange(8)
    return bytes(altered)


def _truncate(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content) + 1)]


def _zeros(content: bytes, generator: random.Random) -> bytes:
    """Lose a block, as a disk or a file system does after a crash."""
    start = generator.randrange(len(content) + 1)
    return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]


def _repeat(content: bytes, generator: random.Random) -> bytes:
    return content * 2


def _noise(content: bytes, generator: random.Random) -> bytes:
    return generator.randbytes(generator.choice([0, 1, 100, 10_000]))


def _text(content: bytes, generator: random.Random) -> bytes:
    texts = [b"", b"\n", b"null", b"[]", b"{}", b"0", b'"x"', b"{" * 5000, b"[" * 100_000, b"\xff\xfe", b"NaN"]
    return generator.choice(texts)


def _edit(content: bytes, generator: random.Random) -> bytes:
    """Replace, remove or add one value of a JSON text, or of one line of it."""
    lines = content.splitlines()
    try:
        values = [json.loads(content)]
    except ValueError:
        try:
            values = [json.loads(line) for line in lines]
        except ValueError:
            return _flip(content, generator)
    if not values:
        return b"{}"
    number = generator.randrange(len(values))
    places = [(values, number), *_places(values[number])]
    container, key = generator.choice(places)
    action = generator.random()
    if action < 0.6:
        container[key] = generator.choice(_VALUES)
    elif action < 0.8 and container is not values:
        del container[key]
    elif isinstance(container, dict):
        container["unknown"] = generator.choice(_VALUES)
    return b"\n".join(json.dumps(value).encode() for value in values) + b"\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a JSON value with every key in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


_WAYS: list[Callable[[bytes, random.Random], bytes]] = [
    _flip, _flip, _truncate, _zeros, _repeat, _noise, _text, _edit, _edit, _edit, _edit,
]  # fmt: skip


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Return the content of a file, damaged in a random way."""
    return generator.choice(_WAYS)(content, generator)
