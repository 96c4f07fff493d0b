"""One variant in a process of its own: prints its figures as JSON. `python -m join_bench.variants '{"variant": …}'`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from . import limit, ours
from .meter import Meter, Outcome, peak_megabytes
from .workload import make


def run(job: dict[str, Any], expected: dict[str, str]) -> tuple[Meter, Outcome]:
    """Run the variant that the job names."""
    kind, _, place = job["variant"].partition(":")
    if place == "feed":
        work = make(job["cases"], job["seed"])
        return limit.feed(work) if kind == "dict" else ours.feed(work, job["url"])
    if kind == "dict":
        return limit.bus(job["events"], job["bootstrap"], job["group"])
    if kind in {"sqlite", "postgresql"}:
        return ours.bus(job["events"], job["url"], job["bootstrap"], job["group"], Path(job["folder"]))
    from . import peers

    return peers.run(kind, expected, job)


def main() -> None:
    """Run and print."""
    job = json.loads(sys.argv[1])
    expected: dict[str, str] = json.loads(Path(job["expected"]).read_text(encoding="ascii"))
    before = peak_megabytes()
    meter, outcome = run(job, expected)
    cases = len(expected)
    figures = {"rate": cases / meter.wall, "cpu_rate": cases / meter.cpu, "peak": meter.peak, "before": before}
    print(json.dumps(figures | {"faults": outcome.faults(expected)}))
    sys.stdout.flush()
    os._exit(0)  # a framework may leave threads behind


if __name__ == "__main__":
    main()
