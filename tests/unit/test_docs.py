"""What the documents name is there: other documents, headings, files, commands with their options, settings."""

import re
import shlex
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from listeners.cli.catalogue import BUILDERS
from listeners.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHER_VARIABLES = {"RECLAIM_CONFIG", "RECLAIM_GROUP_NAME", "RECLAIM_KAFKA_DEV_PORT", "RECLAIM_TEST_KAFKA_BOOTSTRAP"}
AE_TITLES = {"RECLAIM_SCU"}
FAULTS = typer.BadParameter.__mro__[2]
"""ClickException of the Click that Typer brings."""
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
    commands, groups = _commands(get_command(app), ())
    for words, rest in re.findall(r"`reclaim ([a-z][a-z -]*[a-z])([^`\n]*)`", document.read_text(encoding="utf-8")):
        parts = tuple(words.partition(" --")[0].split())
        command = next((parts[:length] for length in (3, 2, 1) if parts[:length] in commands), None)
        assert command is not None or parts in groups, words
        wrong = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", f"{words}{rest}")) - commands.get(command or (), set())
        assert not wrong, (words, wrong)


@everywhere
def test_commands_in_blocks_would_run_as_they_are_written(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in _lines_of_blocks(document.read_text(encoding="utf-8")):
        for arguments in _calls(line):
            _require_runnable(arguments, line, tmp_path, monkeypatch)


def test_examples_in_the_help_would_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command has one."""
    for path, command in _leaves(get_command(app), ()):
        examples = (command.help or "").partition("Example")[2].partition(":")[2] or next(
            line for line in (command.help or "").splitlines() if line.startswith("Examples")
        )
        called = [arguments for line in examples.splitlines() for arguments in _calls(line)]
        assert called, f"{' '.join(path)} has no example"
        for arguments in called:
            _require_runnable(arguments, examples, tmp_path, monkeypatch)


def _lines_of_blocks(text: str) -> list[str]:
    """Lines of fenced and indented blocks; one that ends in a backslash goes on in the next."""
    blocks = re.findall(r"^```(?:bash|sh|console|shell)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    joined = "\n".join([*blocks, *re.findall(r"^ {4}(.*)$", text, re.MULTILINE)])
    return joined.replace("\\\n", " ").splitlines()


def _calls(line: str) -> list[list[str]]:
    """The arguments of each `reclaim` in a shell line, behind settings of its environment; ids in capitals stand for any."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = list(lexer)
    except ValueError:
        return []  # a line of another language than the shell's
    commands = [list(group) for ends, group in groupby(words, lambda word: set(word) <= set(";&|")) if not ends]
    bare = [list(dropwhile(lambda word: re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", word), command)) for command in commands]
    return [command[1:] for command in bare if command[:1] == ["reclaim"] and command[1:]]


def _require_runnable(arguments: list[str], line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Click takes the arguments: the command is there, its options are, none is missing, numbers are numbers, choices choices."""
    path, command = (), get_command(app)
    while hasattr(command, "commands"):
        assert arguments, f"{line}: which command of {' '.join(path)}?"
        assert arguments[0] in command.commands, f"{line}: there is no command {arguments[0]}"
        path, command, arguments = (*path, arguments[0]), command.commands[arguments[0]], arguments[1:]
    monkeypatch.chdir(folder)
    for each in arguments:
        if re.fullmatch(r"[\w./-]+\.(?:csv|ya?ml|json)", each):  # the files that an example names are there
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).touch()
        elif re.fullmatch(r"[\w.-]+/?", each) and not each.startswith("-"):
            (folder / each).mkdir(exist_ok=True)
    try:
        command.make_context(" ".join(path), list(arguments))
    except typer.Exit:
        assert "--help" in arguments, line
    except FAULTS as error:
        pytest.fail(f"{line}: {error.format_message()}")
    if path == ("serve",):
        assert set(arguments) <= set(BUILDERS), line


def _leaves(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [leaf for name, inner in command.commands.items() for leaf in _leaves(inner, (*path, name))]


def test_what_would_not_run_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("models lsit", "models", "models list --bogus", "models rollback", "dead-letters show twelve", "serve infrence")
    for words in wrong:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            _require_runnable(words.split(), words, tmp_path, monkeypatch)


@everywhere
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", document.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


@everywhere
def test_tests_that_are_named_exist(document: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/.]+\.py)::(test_\w+)`", document.read_text(encoding="utf-8")):
        assert re.search(rf"^(?:async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{name}"


def test_every_promise_is_held_by_tests() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    promises = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    held = re.findall(r"^\| (\d+) \| `tests/", text, re.MULTILINE)
    assert promises == held == [str(number) for number in range(1, len(promises) + 1)]


def test_the_readme_names_every_guide() -> None:
    named = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in named]


def test_every_service_stands_in_the_deployment() -> None:
    """A site that starts what the document lists has started everything."""
    lines = _lines_of_blocks((ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"))
    started = {name for line in lines for arguments in _calls(line) if arguments[0] == "serve" for name in arguments[1:]}
    compose = (ROOT / "deploy" / "compose" / "compose.yaml").read_text(encoding="utf-8")
    composed = {name for names in re.findall(r"command: \[serve, ([\w, ]+)\]", compose) for name in names.split(", ")}
    assert started == composed == set(BUILDERS)


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
