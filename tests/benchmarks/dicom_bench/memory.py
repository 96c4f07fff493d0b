"""The listener's resident memory while 200 associations are open and many of them are in the middle of an object."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicom_bench.loads import KINDS, Template
from dicom_bench.processes import resident_bytes, watched
from dicom_bench.scu import SUCCESS, Item, Scu
from dicom_bench.servers import OURS, SERVERS, Job, Running, free_port, started

ASSOCIATIONS: Final = 200
ACTIVE: Final = 8


@dataclass(frozen=True)
class Stage:
    """What went on, and the listener's memory: the most seen during it."""

    what: str
    megabytes: float


def measure(scratch: Path, *, everything_large: bool) -> list[Stage]:
    """Idle, eight with large objects, 200 idle or active, 200 in the middle of an object at the same time."""
    with started(SERVERS[OURS], Job(scratch / "memory", free_port())):
        pass  # it makes its tables, as `reclaim up` does before it starts the listener
    with started(SERVERS[OURS], Job(scratch / "memory", free_port())) as running:
        stages = [Stage("after start", resident_bytes(running.process.pid) / 1e6)]
        template = Template(KINDS["DX"])
        with _associations(running, template, ASSOCIATIONS) as scus:
            stages.append(_stage(running, f"{ASSOCIATIONS} associations, none active", list, []))
            items = [[template.item(lane, number) for number in range(3)] for lane in range(ACTIVE)]
            what = f"{ASSOCIATIONS} associations, {ACTIVE} of them sending 8 MB DX"
            stages.append(_stage(running, what, _send, list(zip(scus[:ACTIVE], items, strict=True))))
            halves = 8_000_000 if everything_large else 600_000
            what = f"{ASSOCIATIONS} associations, each in the middle of an 8 MB DX ({halves / 1e6:g} MB of it sent)"
            stages.append(_stage(running, what, _send_part, [(scu, template, n, halves) for n, scu in enumerate(scus)]))
    return stages


def rows_of(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """As the other rows are."""
    columns = {"sender": "own SCU", "assoc.": ASSOCIATIONS, "server": OURS}
    return [{"load": stage.what, **columns, "peak RSS MB": round(stage.megabytes)} for stage in stages]


@contextmanager
def _associations(running: Running, template: Template, count: int) -> Iterator[list[Scu]]:
    with ExitStack() as stack:
        scus = [Scu(running.address, [(template.sop_class, template.syntax)]) for _ in range(count)]
        for scu in scus:
            stack.callback(scu.close)
        yield scus


def _stage(running: Running, what: str, work: Any, lanes: Sequence[tuple[Any, ...]]) -> Stage:
    failures: list[BaseException] = []

    def one(lane: tuple[Any, ...]) -> None:
        try:
            work(*lane)
        except BaseException as error:  # noqa: BLE001 - told in the main thread
            failures.append(error)

    with watched(running.process.pid) as cost, ThreadPoolExecutor(2 * ACTIVE) as pool:  # what the senders hold is bounded
        for lane in lanes:
            pool.submit(one, lane)
    if failures:
        raise SystemExit(f"{what}: {failures[0]!r}")
    return Stage(what, cost.peak_bytes / 1e6)


def _send(scu: Scu, items: Sequence[Item]) -> None:
    for item in items:
        status = scu.store(item)
        if status != SUCCESS:
            raise RuntimeError(f"status {status:04X}")


def _send_part(scu: Scu, template: Template, number: int, count: int) -> None:
    request = scu.request(template.item(ACTIVE + number, number))
    scu.socket.sendall(memoryview(request)[: min(count, len(request) - 1)])
