"""Every message id that the code can log stands in the runbook, once, with an action, and none that it cannot."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ANY_ID = re.compile(r"\b[A-Z]{3}-\d{3}\b")
ALGORITHMS = {"SHA-256", "SHA-384", "SHA-512"}


def ids_in_code() -> set[str]:
    files = [file for package in ("agents", "listeners", "models", "services") for file in (ROOT / package).rglob("*.py")]
    return {found for file in files for found in ANY_ID.findall(file.read_text(encoding="utf-8"))} - ALGORITHMS


def rows() -> list[tuple[str, str, str]]:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    return [
        (identity, meaning.strip(), action.strip())
        for identity, meaning, action in re.findall(r"^\| ([A-Z]{3}-\d{3}) \|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    ]


def test_the_runbook_knows_every_message_id_and_no_other() -> None:
    listed = [identity for identity, _, _ in rows()]
    assert len(listed) == len(set(listed))
    assert set(listed) == ids_in_code(), "docs/runbook.md: one row per message id"


def test_every_message_has_a_meaning_and_an_action() -> None:
    for identity, meaning, action in rows():
        assert meaning, identity
        assert action, identity


def test_every_setting_and_command_that_it_names_exists() -> None:
    from typer.main import get_command

    from listeners.cli.main import app
    from schemas.settings import Settings

    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    names = {f"RECLAIM_{name}".upper() for name in Settings.model_fields}
    for group, field in Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {})
        names |= {f"RECLAIM_{group}_{name}".upper() for name in inner}
    assert set(re.findall(r"RECLAIM_[A-Z_]+[A-Z]", text)) <= names
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for first, second in re.findall(r"`reclaim ([a-z-]+)(?: ([a-z-]+))?", text):
        assert first in commands, first
        inner = getattr(commands[first], "commands", None)
        if inner and second:
            assert second in inner, (first, second)


def test_every_situation_that_an_action_names_is_described() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    named = {name for _, _, action in rows() for name in re.findall(r"\*([A-Z][^*]+)\*", action)}
    assert named <= headings


def test_every_metric_is_described_and_no_other() -> None:
    from services.runtime.telemetry import COUNTERS, HISTOGRAMS

    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(reclaim\.[a-z.]+)` \|", text, re.MULTILINE) == [*COUNTERS, *HISTOGRAMS]


def log_lines() -> Iterator[tuple[str, ast.expr, list[ast.expr]]]:
    """Where something is logged, its text, and what stands in it, in the parts whose lines all have ids by the runbook."""
    for folder in ("listeners/dicom", "listeners/dicomweb", "services/assembly", "services/results"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"), attr=level), args=[*arguments]):
                        if level != "isEnabledFor":
                            text, *rest = arguments[1:] if level == "log" else arguments
                            yield f"{file.relative_to(ROOT)}:{node.lineno}", text, rest


def test_every_log_line_begins_with_a_message_id() -> None:
    lines = list(log_lines())
    assert len(lines) > 30
    for place, text, rest in lines:
        assert isinstance(text, ast.Constant), place
        named = isinstance(rest[0], ast.Attribute) and rest[0].attr == "message_id" if rest else False
        assert re.match(r"[A-Z]{3}-\d{3} ", text.value) or (text.value.startswith("%s ") and named), place
