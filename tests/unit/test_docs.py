"""What the documents name is there: other documents, headings, files, commands with their options, settings."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHER_VARIABLES = {"RECLAIM_CONFIG", "RECLAIM_GROUP_NAME", "RECLAIM_KAFKA_DEV_PORT", "RECLAIM_TEST_KAFKA_BOOTSTRAP"}
AE_TITLES = {"RECLAIM_SCU"}
everywhere = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@everywhere
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"(?<!`)\]\(([^)\s…]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            name, _, anchor = target.partition("#")
            place = document.parent / name if name else document
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


@everywhere
def test_files_that_are_named_exist(document: Path) -> None:
    folders = "agents|deploy|docs|listeners|models|schemas|services|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", document.read_text(encoding="utf-8")):
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), name


@everywhere
def test_settings_that_are_named_exist(document: Path) -> None:
    from schemas.settings import Settings

    known = {name.upper() for name in _settings(Settings, "RECLAIM_")} | OTHER_VARIABLES | AE_TITLES
    for name in re.findall(r"RECLAIM_[A-Z][A-Z0-9_]*[A-Z0-9]", document.read_text(encoding="utf-8")):
        assert name in known, name


def _settings(model: Any, prefix: str) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        group = hasattr(field.annotation, "model_fields")
        found += _settings(field.annotation, f"{prefix}{name}_") if group else [f"{prefix}{name}"]
    return found


@everywhere
def test_commands_that_are_named_exist_with_their_options(document: Path) -> None:
    from typer.main import get_command

    from listeners.cli.main import app

    commands, groups = _commands(get_command(app), ())
    for words, rest in re.findall(r"`reclaim ([a-z][a-z -]*[a-z])([^`\n]*)`", document.read_text(encoding="utf-8")):
        parts = tuple(words.partition(" --")[0].split())
        command = next((parts[:length] for length in (3, 2, 1) if parts[:length] in commands), None)
        assert command is not None or parts in groups, words
        wrong = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", f"{words}{rest}")) - commands.get(command or (), set())
        assert not wrong, (words, wrong)


def _commands(command: Any, path: tuple[str, ...]) -> tuple[dict[tuple[str, ...], set[str]], set[tuple[str, ...]]]:
    """Every command with the options that it has, and the groups of commands."""
    if not hasattr(command, "commands"):
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        return {path: options | {"--help"}}, set()
    commands, groups = {}, {path}
    for name, inner in command.commands.items():
        below = _commands(inner, (*path, name))
        commands |= below[0]
        groups |= below[1]
    return commands, groups
