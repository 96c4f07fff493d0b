"""The sequential detector as deployed: false alarms a year, delays after a fall, stress; beside the rules that others publish.

    python tests/benchmarks/detector.py [--quick] [--resume FILE] [--only PREFIX] [--minutes N] [--json FILE]

Worlds, falls and the bar are those of the acceptance table (docs/benchmarks/detector.md). Every test set is drawn anew and
calibrated by itself, as at registration. `--quick` takes under three minutes on two cores; the whole takes hours, in pieces:
`--resume FILE` keeps each piece and goes on where an earlier run stopped, `--only 'own|2-class'` takes some of them, and
`--minutes` stops after the piece in hand.
"""

import sys
import time
from pathlib import Path

from bench_report import arguments, finish
from detector_bench.pieces import FULL, QUICK, Store, plan
from detector_bench.tables import note, rows_of, targets_of


def main() -> None:
    """Run what is missing, then print all that is there."""
    parser = arguments("the sequential detector against published rules")
    parser.add_argument("--resume", type=Path, help="keep finished pieces in this file and do not compute them again")
    parser.add_argument("--only", nargs="+", default=[""], help="only pieces whose names start with one of these, in this order")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no piece after so many minutes")
    options = parser.parse_args()
    amount = QUICK if options.quick else FULL
    store, started = Store(options.resume), time.monotonic()
    pieces = [piece for prefix in options.only for piece in plan(amount) if piece[0].startswith(prefix)]
    for piece in pieces:
        if time.monotonic() - started < 60 * options.minutes:
            begun = time.monotonic()
            store.take(piece)
            print(f"{piece[0]}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    finish("detector", rows_of(store.found), targets_of(store.found), options.json, note(store.found))


if __name__ == "__main__":
    main()
