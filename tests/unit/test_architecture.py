"""The tree keeps its promises: imports point one way, names are ours, files stay small."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ("schemas", "models", "services", "agents", "listeners")
FILES = sorted(file for package in ORDER for file in (ROOT / package).rglob("*.py"))
WRITTEN = [file for file in FILES if file.parent.name != "versions"]
"""All but the migrations, which are generated."""
BENCHMARKS = sorted((ROOT / "tests" / "benchmarks").rglob("*.py"))
LONGEST_FUNCTION = 40


def _imported(file: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _id(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_imports_point_one_way(file):
    own = ORDER.index(file.relative_to(ROOT).parts[0])
    above = [name for name in _imported(file) if name.split(".")[0] in ORDER[own + 1 :]]
    assert not above, f"{_id(file)} imports upwards: {above}"


@pytest.mark.parametrize("file", [file for file in FILES if file.is_relative_to(ROOT / "services")], ids=_id)
def test_a_service_imports_no_other_service(file):
    parts = file.relative_to(ROOT).parts
    own = parts[1] if len(parts) > 2 else ""
    others = {name.split(".")[1] for name in _imported(file) if name.startswith("services.")} - {own, "runtime"}
    assert not others, f"{_id(file)} imports services {others}"


@pytest.mark.parametrize("file", [*WRITTEN, *BENCHMARKS], ids=_id)
def test_files_stay_under_400_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("file", [*WRITTEN, *BENCHMARKS], ids=_id)
def test_functions_stay_under_40_lines(file):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, functions)]
    long = {node.name: lines for node in found if (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION}
    assert not long


@pytest.mark.parametrize("name", ORDER)
def test_the_package_names_are_ours(name):
    module = importlib.import_module(name)
    assert Path(str(module.__file__)).is_relative_to(ROOT)


def test_the_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_services_that_hold_no_images_do_without_torch():
    """Half a gigabyte each: the process that judges, joins, reports and talks would not fit beside the models."""
    judging = ("evaluation", "drift", "ground_truth", "reporting", "assembly")
    modules = [f"services.{name}.app" for name in judging] + ["listeners.chat.app"]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
