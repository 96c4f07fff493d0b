"""A soak: many instances under injected faults, and at its end acknowledged = stored = announced, exactly.

    python tests/benchmarks/soak.py [INSTANCES] [--quick] [--seed N] [--senders N] [--database URL] [--state FOLDER] [--json FILE]

Runs `reclaim serve` for the listener, for assembly and for the relay, each in its process, with the embedded broker, and
reads the outbox table and the bus. Senders are our SCU and DCMTK's storescu (where installed), which count what was
acknowledged. Faults: SIGKILL and restart of each process, the broker included, at random moments; connections cut inside
a PDU, answers lost, instances sent again, other bytes for archived instances, late instances, rubbish connections. `--seed`
fixes the draws of every sender, not the scheduling. Prints what differs; exit code 1 when anything does, as of a test.
"""

import random
import shutil
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue

from bench_report import arguments, at_most, finish
from dicom_bench.loads import KINDS, Template
from dicom_bench.servers import program
from dicom_bench.soak_check import differences, open_database, settle
from dicom_bench.soak_senders import Lane, Ledger, StorescuLane, Work, pester
from dicom_bench.soak_world import QUIET_S, World

BROKER = "broker"
LATE = 0.15
"""Share of studies whose last instances come after the study was announced."""


def main() -> None:
    """Run the soak and print what differs."""
    parser = arguments("soak of the DICOM listener under faults")
    parser.add_argument("instances", type=int, nargs="?", default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--senders", type=int, default=6)
    parser.add_argument("--database", default="", help="SQLAlchemy address of an empty database; default: SQLite")
    parser.add_argument("--state", type=Path, help="keep everything in this folder; default: a temporary one")
    options = parser.parse_args()
    if options.quick:
        options.instances = min(options.instances, 2_000)
    folder = options.state or Path(tempfile.mkdtemp(prefix="soak-"))
    found = soak(folder, options)
    if options.state is None and not found:
        shutil.rmtree(folder)
    for line in found:
        print(f"DIFFERS: {line}")
    sys.exit(f"see {folder}" if found else 0)


def soak(folder: Path, options: Namespace) -> list[str]:
    """Send, kill, settle, compare; prints the tables."""
    template, ledger = Template(KINDS["MR"], side=32), Ledger()
    work = list(studies(options.instances, random.Random(options.seed)))
    began = time.monotonic()
    with World(folder, options.database) as world:
        database = open_database(world.state, options.database)
        send(world, template, work, ledger, options)
        seconds = time.monotonic() - began
        settle(database, world, ledger)
        codes = world.stop()
        found = [f"{name} ended with {code} on SIGTERM" for name, code in codes.items() if code]
        found += differences(database, world, ledger, options.instances)
        database.close()
        rows = facts(world, ledger, seconds)
    finish(
        "soak", rows, [at_most("differences", len(found), 0)], options.json, f"{options.instances} instances, seed {options.seed}."
    )
    return found


def studies(instances: int, chance: random.Random) -> Iterator[Work]:
    """Studies of 5 to 60 instances; of some, the last ones come late, when the study has been announced."""
    left, study = instances, 0
    while left:
        count = min(left, chance.randint(5, 60))
        numbers = tuple(range(count))
        late = chance.randint(1, 3) if count > 5 and chance.random() < LATE else 0
        yield Work(study, numbers[: count - late])
        if late:
            yield Work(study, numbers[count - late :], not_before=-1.0)
        left, study = left - count, study + 1


def send(world: World, template: Template, work: Sequence[Work], ledger: Ledger, options: Namespace) -> None:
    """All work through all senders, while processes are killed; returns when everything is acknowledged."""
    stop = threading.Event()
    rubbish = threading.Thread(target=pester, args=(world.address, ledger, stop, options.seed), name="rubbish")
    rubbish.start()
    try:
        prompt = [item for item in work if not item.not_before]
        _all_lanes(world, template, prompt, ledger, options, kills_for(options.instances, random.Random(options.seed)))
        late = [Work(item.study, item.numbers, time.monotonic() + 2 * QUIET_S) for item in work if item.not_before]
        _all_lanes(world, template, late, ledger, options, [])
    finally:
        stop.set()
        rubbish.join()


def kills_for(instances: int, chance: random.Random) -> list[tuple[int, str]]:
    """At how many acknowledged instances which process is killed: the listener most often, each at least once."""
    seldom = max(1, instances // 10_000)
    counts = {"dicom": max(3, instances // 2_000), "assembly": seldom, "relay": seldom, BROKER: seldom}
    return sorted((chance.randrange(int(0.9 * instances)), name) for name, count in counts.items() for _ in range(count))


def _all_lanes(
    world: World, template: Template, work: Sequence[Work], ledger: Ledger, options: Namespace, kills: Sequence[tuple[int, str]]
) -> None:
    queue: Queue[Work] = Queue()
    for item in work:
        queue.put(item)
    lanes = [Lane(world.address, template, queue, ledger, options.seed + n) for n in range(options.senders)]
    if program("storescu"):
        lanes.append(StorescuLane(world.address, template, queue, ledger, world.state.parent / "storescu"))
    threads = [threading.Thread(target=lane.run, name=f"lane-{n}", daemon=True) for n, lane in enumerate(lanes)]
    for thread in threads:
        thread.start()
    _kill_while(world, threads, ledger, list(kills), random.Random(options.seed))
    for thread in threads:
        thread.join()


def _kill_while(
    world: World, threads: Sequence[threading.Thread], ledger: Ledger, kills: list[tuple[int, str]], chance: random.Random
) -> None:
    """In the main thread, which the processes die with."""
    while any(thread.is_alive() for thread in threads):
        while kills and len(ledger.acknowledged) >= kills[0][0]:
            _, name = kills.pop(0)
            time.sleep(chance.uniform(0.0, 0.1))
            world.watch()
            ledger.count(f"SIGKILL of {name}")
            if name == BROKER:
                world.replace_broker()
            else:
                world.kill(name)
                world.start(name)
        world.watch()
        time.sleep(0.02)


def facts(world: World, ledger: Ledger, seconds: float) -> list[dict[str, object]]:
    """What went on."""
    rows: list[dict[str, object]] = [
        {"what": "instances acknowledged", "value": len(ledger.acknowledged)},
        {"what": "instances a second, restarts included", "value": round(len(ledger.acknowledged) / seconds)},
        {"what": "announcements on the bus, of which sent more than once", "value": _announced(world)},
        {"what": "brokers that ended of themselves", "value": world.brokers_lost},
        {"what": "listener, most resident memory, MB", "value": round(world.peak_bytes / 1e6)},
    ]
    return rows + [{"what": what, "value": count} for what, count in sorted(ledger.events.items())]


def _announced(world: World) -> str:
    seen = world.reader.seen
    return f"{len(seen)}, {sum(count > 1 for count in seen.values())}"


if __name__ == "__main__":
    main()
