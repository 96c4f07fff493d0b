"""Labelled cases joined per second: ours on SQLite and PostgreSQL, quixstreams, bytewax, and dicts in memory as the limit.

    python tests/benchmarks/join.py [--quick] [--cases N] [--rounds N] [--peers FOLDER] [--kills N] [--limit-s S] [--json FILE]

Every variant is a process of its own that reads the same events (scores, labels, 1 % corrections, 2 % repeated, in one fixed
disorder) from the same embedded broker; rounds are interleaved. `feed` rows are given the records from a list, without a
bus. The peers are looked for in `--peers` (made by `pip install --target FOLDER quixstreams bytewax`). `--kills`: how often the
consumer is killed with SIGKILL in the crash test, which must end exactly. A run of a peer that has not ended after `--limit-s`
is ended and told; a run of ours that has not is a fault.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench_report import Target, arguments, at_least, at_most, finish, spread
from join_bench.crash import survive
from join_bench.workload import Workload, make
from join_bench.world import filled_broker, fresh_database, postgres, postgres_binaries

LIMIT: Final = "dict:bus"
OURS: Final = ("sqlite:bus", "postgresql:bus")
FEEDS: Final = ("dict:feed", "sqlite:feed", "postgresql:feed")
PEERS: Final = ("quixstreams", "bytewax")
WHAT: Final = {
    "dict:bus": "dicts in memory, aiokafka: the limit",
    "sqlite:bus": "this project, SQLite (WAL, synchronous FULL)",
    "postgresql:bus": "this project, PostgreSQL (fsync, synchronous commit)",
    "dict:feed": "dicts in memory, from a list",
    "sqlite:feed": "this project, SQLite, from a list",
    "postgresql:feed": "this project, PostgreSQL, from a list",
    "quixstreams": "quixstreams: RocksDB and changelog topic",
    "bytewax": "bytewax: recovery partitions in SQLite",
}
MISSING: Final = "not installed"
Figures = dict[str, Any]
Found = dict[str, list[Figures | None]]
"""Variant to its rounds."""


def main() -> None:
    """Run everything and print it."""
    parser = arguments("labelled cases joined per second")
    parser.add_argument("--cases", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--peers", type=Path, help="folder with quixstreams and bytewax")
    parser.add_argument("--limit-s", type=float, default=120.0, help="seconds after which a run is ended")
    parser.add_argument("--only", default="", help="comma-separated names of the variants to run")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.rounds, options.kills = min(options.cases, 4_000), 1, 3
    work = make(options.cases)
    with tempfile.TemporaryDirectory(prefix="join-") as scratch:
        found = measure(work, Path(scratch), options)
        killed = survive(Path(scratch) / "crash", min(options.cases, 20_000), options.kills)
    note = (
        f"{options.cases} cases, {len(work.records)} events, batches of 500, {options.rounds} interleaved rounds. {killed.sentence}"
    )
    finish("join", list(rows(found)), targets(found, killed.faults), options.json, note)


def measure(work: Workload, scratch: Path, options: Namespace) -> Found:
    """Figures of every variant by round, None for a run that did not end; a list without any for what is not installed."""
    binaries = postgres_binaries()
    expected = scratch / "expected.json"
    expected.write_text(json.dumps(work.truths), encoding="ascii")
    found: Found = {name: [] for name in _wanted(options)}
    with ExitStack() as stack:
        server = stack.enter_context(postgres(binaries)) if binaries else ""
        for number in range(1, options.rounds + 1):
            # A broker of its own for every round: the changelog topics of a peer would otherwise slow those after it.
            with filled_broker(work) as broker:
                for name in found:
                    print(f"round {number}: {name}", file=sys.stderr, flush=True)
                    folder = scratch / uuid.uuid4().hex
                    folder.mkdir()
                    job = {"variant": name, "cases": options.cases, "seed": 1, "events": work.events, "folder": str(folder)}
                    job |= {"bootstrap": broker.bootstrap, "group": uuid.uuid4().hex, "expected": str(expected)}
                    job["url"] = fresh_database(server) if server and "postgresql" in name else f"sqlite:///{folder}/join.sqlite"
                    if server or "postgresql" not in name:
                        found[name] += _run(job, options.peers, options.limit_s)
    return found


def _wanted(options: Namespace) -> list[str]:
    names = [LIMIT, *OURS, *PEERS, *FEEDS]
    return [name for name in names if not options.only or name in options.only.split(",")]


def _run(job: Figures, peers: Path | None, limit_s: float) -> Iterator[Figures | None]:
    """Figures of one run, None if it did not end; nothing for a peer that is not installed."""
    environment = dict(os.environ)
    name = job["variant"]
    if name in PEERS:
        if peers is None or not (peers / name).exists():
            return
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(peers), environment.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "join_bench.variants", json.dumps(job)]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"{name} did not end within {limit_s:.0f} s", file=sys.stderr)
        if name not in PEERS:
            sys.exit(1)
        yield None
        return
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    if figures["faults"]:
        print(f"{name}: {'; '.join(figures['faults'])}", file=sys.stderr)
    yield figures


def rows(found: Found) -> Iterator[dict[str, Any]]:
    """One row a variant."""
    for name, all_runs in found.items():
        runs = [run for run in all_runs if run]
        if not runs:
            yield {"variant": WHAT[name], "cases/s": "no run ended" if all_runs else MISSING}
            continue
        yield {
            "variant": WHAT[name],
            "cases/s": spread([run["rate"] for run in runs], 0),
            "against dicts": _ratio(found, name),
            "cases per CPU-second": spread([run["cpu_rate"] for run in runs], 0),
            "peak MB": round(max(run["peak"] for run in runs)),
            "exact": "no" if any(run["faults"] for run in runs) else "yes",
            "ended": f"{len(runs)} of {len(all_runs)}",
        }


def _ratio(found: Found, name: str, against: str = "") -> float | None:
    """Median of the ratios of those rounds in which both ended."""
    limit = found.get(against or (FEEDS[0] if name in FEEDS else LIMIT), [])
    pairs = zip(found.get(name, []), limit, strict=False)
    ratios = [run["rate"] / other["rate"] for run, other in pairs if run and other]
    return statistics.median(ratios) if ratios else None


def targets(found: Found, faults: list[str]) -> list[Target]:
    """What is to be reached."""
    best = [at_least(f"{name} against dicts in memory", _ratio(found, name), 0.5) for name in OURS]
    ahead = [at_least(f"{name} against {peer}", _ratio(found, name, peer), 1.0) for name in OURS for peer in PEERS]
    ours = {name: [run for run in found.get(name, []) if run] for name in OURS}
    memory = [at_most(f"{name}: peak MB", max((run["peak"] for run in ours[name]), default=None), 300) for name in OURS]
    wrong = sum(bool(run["faults"]) for runs in ours.values() for run in runs)
    return [
        *best,
        *ahead,
        *memory,
        at_most("runs of ours that were not exact", wrong, 0),
        at_most("faults after kills", len(faults), 0),
    ]


if __name__ == "__main__":
    main()
