"""The form of error messages: expected, received, what to do."""

import ast
from pathlib import Path

import pytest

import backpass.errors

SOURCE = Path(__file__).parents[1] / "src" / "backpass"
ERRORS = {name for name in dir(backpass.errors) if name.endswith("Error")} | {"DamagedCheckpointError"}
PASSED_ON = {"mpii.py", "processes.py"}  # messages of other errors, with where they come from


def messages(path: Path) -> list[tuple[int, str]]:
    """Return line and text of each message that is written out; ``{}`` stands for what is put into it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
            found += [(node.lineno, text) for text in texts_of(node.args[0])]
    return found


def texts_of(node: ast.expr) -> list[str]:
    """Return what an expression can be: a literal, a sum of texts, or one of two; nothing for any other."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [one + other for one in texts_of(left) for other in texts_of(right)]
        case ast.IfExp(body=body, orelse=orelse):
            return texts_of(body) + texts_of(orelse)
    return []


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
