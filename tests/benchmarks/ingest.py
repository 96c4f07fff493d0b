"""How fast, how cheap and how small the DICOM listener is, against what hospitals use and against the plain limit.

    python tests/benchmarks/ingest.py [--quick | --targets] [--rounds N] [--data FOLDER] [--scratch FOLDER] [--json FILE]

DCMTK's storescu sends; our own SCU takes response times. Every run starts its server into an empty store, waits for a
C-ECHO, counts from the first sender's start to the last one's end, and compares the stored files with the sent ones. All
servers of a cell take turns within one round, forwards and backwards; a target's ratio is the median over rounds of two
runs of the same round. `--quick` takes about five minutes on two cores and leaves out rounds and cells, `--targets` about
eleven, the whole about an hour. `--data`: a folder of DICOM files or zip archives of them, sent once more in
their own transfer syntaxes. `--scratch`: where stores are written; it decides which disk is measured. Linux only.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_report import Target, arguments, at_most, finish
from dicom_bench import memory
from dicom_bench.certificates import Certificate, make_certificate
from dicom_bench.loads import Sample, real_files, write_load
from dicom_bench.report import CT_1, CT_8, CT_LONG, DX_8, MR_8, MR_LONG, rows_of, targets_of
from dicom_bench.runs import OWN, Cell, Result, run
from dicom_bench.servers import (
    DOCUMENTED,
    FORKING,
    FORKING_DURABLE,
    ORTHANC,
    OURS,
    PLAIN,
    PYNETDICOM,
    RAW,
    RAW_DURABLE,
    SERVERS,
    program,
)

EVERYBODY = (OURS, FORKING, FORKING_DURABLE, PLAIN, ORTHANC, PYNETDICOM, DOCUMENTED, RAW, RAW_DURABLE)
DICOM_ONLY = tuple(name for name in EVERYBODY if SERVERS[name].speaks_dicom)
PATIENCE_S = 30.0
DATA = "data"
COUNTS = {"CT": 500, "MR": 2000, "DX": 40}
LONG = {"CT": 2000, "MR": 6000}


@dataclass(frozen=True)
class Part:
    """A cell with its servers, how many objects a run sends and how many rounds there are."""

    cell: Cell
    servers: tuple[str, ...]
    count: int
    rounds: int


def main() -> None:
    """Run the benchmark and print it."""
    parser = arguments("DICOM ingest: ours, DCMTK, Orthanc, pynetdicom and a raw writer")
    parser.add_argument("--rounds", type=int, help="rounds of the main cells; default 5, with --targets 4, with --quick 2")
    parser.add_argument("--targets", action="store_true", help="only the cells that targets are taken from, in full size")
    parser.add_argument("--scratch", type=Path, help="folder for stores; default: the system's for temporary files")
    options = parser.parse_args()
    if program("storescu") is None:
        raise SystemExit("DCMTK's storescu is the sender and is not installed (Debian package: dcmtk)")
    with tempfile.TemporaryDirectory(prefix="ingest-", dir=options.scratch) as folder:
        rows, targets = measure(Path(folder), options)
    finish("ingest", rows, targets, options.json, note(options))


def note(options: Namespace) -> str:
    """What the figures mean."""
    return (
        f"{version('storescu', '--version')}; {version('Orthanc', '--version')}. Median [least, greatest] of interleaved runs; "
        "CPU: user and kernel time of the server's process tree; peak RSS: greatest of all runs, of the tree; foreign CPU: "
        f"share of all cores that others took. {'Quick run: few rounds, small loads.' if options.quick else ''}"
    )


def version(name: str, option: str) -> str:
    """First line of what a program says of itself."""
    path = program(name)
    if path is None:
        return f"{name}: not installed"
    said = subprocess.run([path, option], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0].replace(str(Path(path).parent), "").strip("$/ ")


def plan(options: Namespace) -> list[Part]:
    """The cells. The main ones come first and, where a target is taken from them, with all rounds."""
    rounds = options.rounds or (2 if options.quick else 4 if options.targets else 5)
    if options.quick:
        return targets_plan(rounds, {"CT": 160, "MR": 800, "DX": 24}, nagle=(40, 1))
    parts = targets_plan(rounds, COUNTS, nagle=(100, min(rounds, 3))) if options.targets else full_plan(rounds)
    return parts + [Part(cell, (OURS,), LONG[cell.load], min(rounds, 2)) for cell in (CT_LONG, MR_LONG)]


def targets_plan(rounds: int, counts: dict[str, int], nagle: tuple[int, int]) -> list[Part]:
    """The cells that targets are taken from, TLS and response times; `nagle`: objects and rounds of the slow cells."""
    few = (OURS, FORKING, ORTHANC)
    limits = (FORKING_DURABLE, RAW_DURABLE)
    return [
        Part(CT_8, EVERYBODY, counts["CT"], rounds),
        Part(CT_1, (OURS, FORKING, FORKING_DURABLE, ORTHANC, RAW_DURABLE), counts["CT"] * 2 // 3, rounds),
        Part(MR_8, (*few, *limits), counts["MR"], rounds),
        Part(DX_8, (*few, *limits), counts["DX"], rounds),
        *(Part(Cell(load, 1, nodelay=False), (OURS, PLAIN), *nagle) for load in ("CT", "MR")),
        Part(Cell("CT", 8, tls=True), (OURS, FORKING), counts["CT"], 1),
        Part(Cell("CT", 8, OWN), few, counts["CT"], 1),
    ]


def full_plan(rounds: int) -> list[Part]:
    """Every load at 1, 4 and 8 associations; Nagle with fewer objects, since some serve twenty a second."""
    counts, fewer = COUNTS, min(rounds, 3)
    parts = [Part(Cell(load, n), EVERYBODY, count, rounds) for load, count in counts.items() for n in (8, 1, 4)]
    parts += [Part(Cell("CT", n, tls=True), (OURS, FORKING), counts["CT"], fewer) for n in (1, 8)]
    parts += [Part(Cell(load, n, OWN), DICOM_ONLY, count // 2, fewer) for load, count in counts.items() for n in (1, 8)]
    nagle = {"CT": 100, "MR": 100, "DX": 8}
    parts += [Part(Cell(load, 1, nodelay=False), DICOM_ONLY, count, fewer) for load, count in nagle.items()]
    return parts + [Part(Cell(load, 8, nodelay=False), DICOM_ONLY, 4 * nagle[load], 1) for load in ("CT", "MR")]


def measure(scratch: Path, options: Namespace) -> tuple[list[dict[str, Any]], list[Target]]:
    """All cells, then memory and the way to the bus."""
    parts, loads = plan(options), {}
    for kind in dict.fromkeys(part.cell.load for part in parts):
        most = max(part.count for part in parts if part.cell.load == kind)
        loads[kind] = write_load(kind, most, scratch / kind)
    if options.data:
        loads[DATA] = real_files(options.data, scratch / DATA)
        parts.append(Part(Cell(DATA, 4, OWN), DICOM_ONLY, len(loads[DATA]), 1 if options.quick else 3))
    patience = 0.0 if options.quick else PATIENCE_S
    results = take_turns(parts, loads, scratch, make_certificate(scratch), patience)
    stages = memory.measure(scratch, everything_large=not options.quick)
    largest = max(stage.megabytes for stage in stages)
    rows, targets = rows_of(results), targets_of(results)
    targets.append(at_most("memory with 200 associations and 8 MB objects, MB", round(largest), 120))
    way, arrival = to_the_bus(scratch, quick=options.quick)
    return rows + memory.rows_of(stages) + way, [*targets, *arrival]


def take_turns(
    parts: Sequence[Part], loads: dict[str, list[Sample]], scratch: Path, tls: Certificate | None, patience_s: float
) -> dict[tuple[Cell, str], list[Result]]:
    """Runs in rounds: each cell once a round with all its servers, every second round backwards. Ctrl-C ends the rounds early."""
    results: dict[tuple[Cell, str], list[Result]] = {(part.cell, name): [] for part in parts for name in part.servers}
    try:
        for turn, part, name in turns(parts, tls):
            result = run(SERVERS[name], part.cell, loads[part.cell.load][: part.count], scratch, tls, patience_s)
            results[part.cell, name].append(result)
            say(turn, part.cell, name, result)
    except KeyboardInterrupt:
        print("interrupted: going on with what was measured", file=sys.stderr, flush=True)
    return results


def turns(parts: Sequence[Part], tls: Certificate | None) -> Iterator[tuple[int, Part, str]]:
    """(round, cell, server) in the order in which they run."""
    for turn in range(max(part.rounds for part in parts)):
        for part in parts:
            names = [name for name in part.servers if turn < part.rounds and is_possible(name, part.cell, tls)]
            for name in names if turn % 2 == 0 else reversed(names):
                yield turn, part, name


def is_possible(name: str, cell: Cell, tls: Certificate | None) -> bool:
    """Whether the server is installed and can be asked for what the cell wants."""
    return not SERVERS[name].missing() and (not cell.tls or (SERVERS[name].speaks_tls and tls is not None))


def say(turn: int, cell: Cell, name: str, result: Result) -> None:
    """Progress, on stderr. Bytes that did not arrive as sent end a benchmark of ours."""
    text = f"round {turn + 1} {cell.load} x{cell.associations} {cell.client}: {name}"
    print(f"{text}: {result.rate:.0f}/s, foreign CPU {100 * result.foreign:.0f} %", file=sys.stderr, flush=True)
    wrong = result.instances - result.refused - result.identical
    if name == OURS and (wrong or result.stored != result.identical):
        raise SystemExit(f"{text}: of {result.instances} objects {result.stored} stored, {result.identical} byte for byte")


def to_the_bus(scratch: Path, *, quick: bool) -> tuple[list[dict[str, Any]], list[Target]]:
    """From the last response to the study's event on the bus, by the benchmark of its own."""
    path = scratch / "completion.json"
    command = [sys.executable, Path(__file__).with_name("completion.py"), "--json", path, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return [{"load": "MPPS completion to the bus", "runs": "failed"}], [at_most("last response to the bus p95, ms", None, 100)]
    result = json.loads(path.read_text())
    rows = [
        {
            "load": f"{row['studies']} studies, {row['last']}, until {row['until']}",
            "sender": "pynetdicom, MPPS",
            "assoc.": 1,
            "server": f"{OURS}, assembly and relay",
            **{f"response {name}": row[name] for name in ("p50 ms", "p95 ms")},
        }
        for row in result["rows"]
    ]
    return rows, [Target(**target) for target in result["targets"]]


if __name__ == "__main__":
    main()
