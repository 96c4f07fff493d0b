"""What all benchmarks print and write: a Markdown table, and JSON with rows and targets."""

import argparse
import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bar and what was reached. `met` is None where it could not be measured on this machine."""

    target: str
    value: float | None
    bound: float
    met: bool | None


def at_least(name: str, value: float | None, bound: float) -> Target:
    """A target that is met by a value of `bound` or more."""
    return Target(name, value, bound, None if value is None else value >= bound)


def at_most(name: str, value: float | None, bound: float) -> Target:
    """A target that is met by a value of `bound` or less."""
    return Target(name, value, bound, None if value is None else value <= bound)


def spread(values: list[float], digits: int = 2) -> str:
    """`median [least, greatest]`."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of the full measurement")
    parser.add_argument("--data", type=Path, help="labelled images as for `reclaim demo --data`; default: packaged ones")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__, "gpu": gpu}


def finish(name: str, rows: list[dict[str, Any]], targets: list[Target], path: Path | None, note: str = "") -> None:
    """Print the tables and write the JSON: name, machine, rows, targets."""
    facts = machine()
    where = f"{facts['cores']} cores, Python {facts['python']}, torch {facts['torch']}, GPU {facts['gpu'] or 'none'}"
    print(f"## {name}\n\n{where}. {note}\n")
    _table(rows)
    _table(
        [
            {
                "target": t.target,
                "reached": t.value,
                "bound": t.bound,
                "met": {True: "yes", False: "no", None: "not measured"}[t.met],
            }
            for t in targets
        ]
    )
    if path:
        document = {"name": name, "machine": facts, "rows": rows, "targets": [asdict(target) for target in targets]}
        path.write_text(json.dumps(document, indent=2), encoding="utf-8")


def _table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_cell(row.get(column)) for column in columns)} |")
    print()


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
