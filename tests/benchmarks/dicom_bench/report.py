"""From runs to rows and targets."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench_report import Target, at_least, at_most, spread
from dicom_bench.runs import Cell, Result, percentile
from dicom_bench.servers import FORKING, FORKING_DURABLE, ORTHANC, OURS, PLAIN, PYNETDICOM, RAW_DURABLE, SERVERS

Results = Mapping[tuple[Cell, str], Sequence[Result]]
CT_8, CT_1, MR_8, DX_8 = Cell("CT", 8), Cell("CT", 1), Cell("MR", 8), Cell("DX", 8)
CT_LONG, MR_LONG = replace(CT_8, long=True), replace(MR_8, long=True)


def rows_of(results: Results) -> list[dict[str, Any]]:
    """One row for each cell and server, in the order in which they were first measured; then what follows from several."""
    return [*(_row(cell, name, runs) for (cell, name), runs in results.items()), *_slopes(results), *_limits(results)]


def _slopes(results: Results) -> Iterator[dict[str, Any]]:
    """CPU of each further object, without what starting the associations costs: a long run less a short one of the same round."""
    for cell in (CT_8, MR_8):
        pairs = list(zip(results.get((cell, OURS), []), results.get((replace(cell, long=True), OURS), []), strict=False))
        if not pairs:
            continue
        short, long = pairs[0][0].instances, pairs[0][1].instances
        row = {"load": f"{cell.load}, each from {short} to {long}", "sender": cell.client, "assoc.": cell.associations}
        row |= {"server": OURS, "fsync before success": "yes", "runs": len(pairs)}
        user = [(long * many.user_ms - short * few.user_ms) / (long - short) for few, many in pairs]
        kernel = [(long * many.kernel_ms - short * few.kernel_ms) / (long - short) for few, many in pairs]
        yield row | {"user ms/inst": spread(user), "kernel ms/inst": spread(kernel)}


def _limits(results: Results) -> Iterator[dict[str, Any]]:
    """For information: what fsyncs before it answers and looks at nothing, in the units of the targets; ours against it."""
    pairs = (
        (FORKING_DURABLE, FORKING),
        (RAW_DURABLE, FORKING),
        (OURS, FORKING_DURABLE),
        (OURS, RAW_DURABLE),
        (FORKING_DURABLE, RAW_DURABLE),
        (FORKING, RAW_DURABLE),
    )
    alone = ((FORKING_DURABLE, ORTHANC), (FORKING_DURABLE, FORKING), (OURS, FORKING_DURABLE))
    for cell, compared in ((CT_8, pairs), (MR_8, pairs), (DX_8, pairs), (CT_1, alone)):
        for one, other in compared:
            ratios = _ratios(results, cell, one, other, lambda run: run.rate)
            if ratios:
                row = {"load": cell.load, "sender": "for information", "assoc.": cell.associations}
                yield row | {"server": f"{one} / {other}", "runs": len(ratios), "instances/s": f"x {spread(ratios)}"}


def _row(cell: Cell, name: str, runs: Sequence[Result]) -> dict[str, Any]:
    sender = cell.client if SERVERS[name].speaks_dicom else "own, sendfile"
    load = f"{cell.load}, long run" if cell.long else cell.load
    row: dict[str, Any] = {"load": load, "sender": sender, "assoc.": cell.associations, "server": name}
    missing = SERVERS[name].missing()
    if missing or not runs:
        return row | {"runs": missing or "not measured"}
    responses = [value for run in runs for value in run.responses]
    row |= {
        "fsync before success": "yes" if SERVERS[name].durable else "no",
        "runs": len(runs),
        "instances/s": spread([run.rate for run in runs], 0),
        "MB/s": round(statistics.median(run.bytes / run.seconds / 1e6 for run in runs)),
        "user ms/inst": spread([run.user_ms for run in runs]),
        "kernel ms/inst": spread([run.kernel_ms for run in runs]),
        "response p50 ms": percentile(responses, 0.5),
        "response p95 ms": percentile(responses, 0.95),
        "response p99 ms": percentile(responses, 0.99),
        "peak RSS MB": round(max(run.peak_mb for run in runs)),
        "foreign CPU": f"{100 * statistics.median(run.foreign for run in runs):.0f} %",
        "stored": _stored(runs, compared=SERVERS[name].speaks_dicom),
    }
    return row


def _stored(runs: Sequence[Result], *, compared: bool) -> str:
    """How many objects lay in the store in the worst run, and how many of them byte for byte."""
    stored, identical = min(run.stored for run in runs), min(run.identical for run in runs)
    refused = max(run.refused for run in runs)
    return (f"{stored}, {identical} identical" if compared else str(stored)) + (f", {refused} refused" if refused else "")


def targets_of(results: Results) -> list[Target]:
    """The bars of the listener that throughput runs can show; None where a peer is not installed."""
    nagle = {load: Cell(load, 1, nodelay=False) for load in ("CT", "MR")}
    ours = results.get((CT_8, OURS), [])
    user = statistics.median(run.user_ms for run in ours) if ours else None
    compare = (
        ("CT, 8 associations: ours / DCMTK storescp +B --fork", CT_8, FORKING, 0.95),
        ("CT, 8 associations: ours / Orthanc", CT_8, ORTHANC, 2.3),
        ("CT, 8 associations: ours / pynetdicom storescp", CT_8, PYNETDICOM, 5.0),
        ("CT, 8 associations: ours / raw durable writer", CT_8, RAW_DURABLE, 0.7),
        ("CT, 1 association: ours / Orthanc", CT_1, ORTHANC, 2.5),
        ("MR, 8 associations: ours / DCMTK storescp +B --fork", MR_8, FORKING, 0.9),
        ("DX, 8 associations: ours / DCMTK storescp +B --fork", DX_8, FORKING, 1.0),
        ("CT, sender with Nagle: ours / DCMTK storescp as installed", nagle["CT"], PLAIN, 10.0),
        ("MR, sender with Nagle: ours / DCMTK storescp as installed", nagle["MR"], PLAIN, 10.0),
    )
    targets = [at_least(text, _ratio(results, cell, peer, lambda run: run.rate), bound) for text, cell, peer, bound in compare]
    targets.append(at_most("CT, 8 associations: server user CPU, ms an instance", user, 0.15))
    targets.append(
        at_most("CT, 8 associations: server user CPU, ours / Orthanc", _ratio(results, CT_8, ORTHANC, lambda run: run.user_ms), 0.1)
    )
    return targets


def _ratio(results: Results, cell: Cell, peer: str, value: Callable[[Result], float]) -> float | None:
    """Median over rounds of ours / peer."""
    ratios = _ratios(results, cell, OURS, peer, value)
    return round(statistics.median(ratios), 3) if ratios else None


def _ratios(results: Results, cell: Cell, one: str, other: str, value: Callable[[Result], float]) -> list[float]:
    """One server / another, both of the same round, so that another load on the machine hits both."""
    pairs = zip(results.get((cell, one), []), results.get((cell, other), []), strict=False)
    return [value(left) / value(right) for left, right in pairs if value(right)]
