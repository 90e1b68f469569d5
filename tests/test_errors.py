"""The form of error messages: expected, received, what to do."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "backpass"
PASSED_ON = {"mpii.py", "processes.py"}  # messages of other errors, with where they come from


def messages(path: Path) -> list[tuple[int, str]]:
    """Return line and text of each message that is written as one literal; ``{}`` stands for what is put into it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("InputError", "StateError") and node.args:
            (message, *_) = node.args
            if isinstance(message, ast.Constant):
                found.append((node.lineno, message.value))
            elif isinstance(message, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in message.values]
                found.append((node.lineno, "".join(parts)))
    return found


@pytest.mark.parametrize(
    "path", [path for path in sorted(SOURCE.rglob("*.py")) if messages(path)], ids=lambda path: path.stem
)
def test_messages_end_with_the_next_step_and_without_a_full_stop(path: Path) -> None:
    texts = messages(path)
    assert [(line, text) for line, text in texts if text.endswith(".") and not text.endswith("...")] == []
    if path.name not in PASSED_ON:
        assert [(line, text) for line, text in texts if ";" not in text] == []


def test_there_are_messages_to_check() -> None:
    assert sum(len(messages(path)) for path in SOURCE.rglob("*.py")) > 300
