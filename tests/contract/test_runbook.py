"""docs/runbook.md: what it quotes is in the code, and each message that ends a run is in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [path for top in ("actors", "jobs", "pipeline") for path in sorted((ROOT / top).glob("**/*.py"))]
ENDS_A_RUN = {"RunError", "StoreError", "TooManyErrors", "Diverged"}
HOLE = "\0"  # a value within a message


def quoted() -> list[str]:
    """The messages of the runbook, by the first column of its tables."""
    part = (ROOT / "docs/runbook.md").read_text().partition("\n## Messages\n")[2]
    return re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)


def fits(message: str, text: str) -> bool:
    """Whether a text of the code has the parts of a message in their order."""
    place = 0
    for part in filter(None, (each.strip(" ") for each in message.split("..."))):
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def literal(node: ast.expr) -> str:
    """A string of the code with holes for what is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(value) if isinstance(value, ast.Constant) else HOLE for value in node.values)
    return HOLE


def texts() -> Iterator[str]:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                yield literal(node)


def raised() -> Iterator[tuple[str, str]]:
    """Where a message is made that ends a run, and the message; not where another's is passed on."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ENDS_A_RUN
                and node.args
            ):
                text = literal(node.args[0])
                if len(text.replace(HOLE, "").strip(" :;()\n")) >= 8:
                    yield f"{module.relative_to(ROOT)}:{node.lineno}", text


def test_there_is_something_to_check() -> None:
    assert len(quoted()) > 80 and len(list(raised())) > 80
    assert fits("left ... rows", f"it left {HOLE} rows") and not fits("rows ... left", "it left rows")


def test_what_it_quotes_is_in_the_code() -> None:
    known = set(texts())
    assert [message for message in quoted() if not any(fits(message, text) for text in known)] == []


def test_no_message_is_quoted_that_says_nothing() -> None:
    assert [message for message in quoted() if len(re.sub(r"[^a-z]", "", message.lower())) < 7] == []
    assert len(quoted()) == len(set(quoted()))


@pytest.mark.parametrize(("place", "text"), list(raised()), ids=lambda value: str(value)[:60].replace(HOLE, "_"))
def test_each_message_that_ends_a_run_is_explained(place: str, text: str) -> None:
    assert any(fits(message, text) for message in quoted()), (
        f"{place} is not in docs/runbook.md: {text.replace(HOLE, '...')}"
    )
