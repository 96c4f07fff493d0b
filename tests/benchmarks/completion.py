"""From the last response to a modality to the study's event on the bus, when MPPS says that the study is complete.

    python tests/benchmarks/completion.py [--quick] [--studies N] [--database URL] [--json FILE]

Starts the embedded broker, `reclaim serve dicom assembly` and `reclaim serve relay`, as `reclaim up` spreads them over
processes, and sends studies of three CT slices with their performed procedure steps over one association. In every second
study the step is completed before its last slice. Measured on one clock: from the response (of the N-SET, or of the last
C-STORE) until the broker has acknowledged the event, and until a consumer outside has read it.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from aiokafka import AIOKafkaConsumer
from bench_report import Target, arguments, at_most, finish
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom.presentation import build_context
from sqlmodel import select

from listeners.cli.context import open_context
from listeners.demo.stage import free_port
from listeners.dicom.echo import echo
from listeners.dicom.mpps import MPPS
from schemas.settings import Settings
from schemas.tables import Outbox
from schemas.topics import STUDY_RECEIVED
from services.runtime.embedded import EmbeddedBroker
from services.runtime.parenthood import die_with_parent
from services.runtime.scu import Peer, open_association
from services.runtime.service import Context
from services.runtime.topics_admin import ensure_topics

CT = "1.2.840.10008.5.1.4.1.1.2"
SLICES = 3
LAST = ("N-SET last", "C-STORE last")


@dataclass
class Sample:
    """One study: what came last, when its response was there, and when a consumer had the event. Seconds of one clock."""

    last: str
    key: str
    answered: float
    read: float = 0.0


def main() -> None:
    """Run the benchmark and print it."""
    parser = arguments("MPPS completed to event on the bus")
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--database", default="", help="SQLAlchemy address; empty: SQLite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, services(Path(folder), options.database) as (context, port):
        samples = asyncio.run(measure(context, port, 20 if options.quick else options.studies))
        rows, targets = table(context, samples)
    finish("completion", rows, targets, options.json, f"{context.database.dialect}, {SLICES} CT slices a study.")


@contextmanager
def services(folder: Path, database: str) -> Iterator[tuple[Context, int]]:
    """The listener with assembly, and the relay, each in its process; the same settings here."""
    broker, port = EmbeddedBroker(folder / "broker.log").start(), free_port()
    os.environ |= {
        "RECLAIM_STATE_DIR": str(folder / "state"),
        "RECLAIM_DATABASE_URL": database,
        "RECLAIM_DICOM_HOST": "127.0.0.1",
        "RECLAIM_DICOM_PORT": str(port),
        "RECLAIM_KAFKA_BOOTSTRAP": broker.bootstrap,
        "RECLAIM_KAFKA_EMBEDDED": "true",
        "RECLAIM_KAFKA_INCARNATION": broker.incarnation,
    }
    context = open_context(Settings())
    asyncio.run(ensure_topics(context.settings.kafka))
    started = [start(folder, *names) for names in (("dicom", "assembly"), ("relay",))]
    try:
        wait_until_ready(folder, port, started)
        yield context, port
    except BaseException:
        print((folder / "dicom.log").read_text()[-4000:])
        raise
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)
        broker.stop()


def start(folder: Path, *names: str) -> subprocess.Popen[bytes]:
    """One process of services; its log lies in the folder."""
    with (folder / f"{names[0]}.log").open("wb") as log:
        command = [sys.executable, "-m", "listeners.cli", "serve", *names]
        return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)  # noqa: PLW1509 - a system call


def wait_until_ready(folder: Path, port: int, started: list[subprocess.Popen[bytes]]) -> None:
    """Return when the listener answers and the relay is at work."""
    end = time.monotonic() + 60
    while time.monotonic() < end and all(process.poll() is None for process in started):
        if "at work" in (folder / "relay.log").read_text() and echo("127.0.0.1", port, called_ae="RECLAIM"):
            return
        time.sleep(0.2)
    raise SystemExit(f"the services do not start:\n{(folder / 'dicom.log').read_text()}\n{(folder / 'relay.log').read_text()}")


async def measure(context: Context, port: int, studies: int) -> list[Sample]:
    """One study after the other, at a modality's leisure."""
    consumer = AIOKafkaConsumer(
        STUDY_RECEIVED.name, bootstrap_servers=context.settings.kafka.bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=10
    )
    await consumer.start()
    modality = Modality(context, port)
    samples = []
    try:
        for number in range(studies):
            sample = await asyncio.to_thread(modality.examine, LAST[number % 2])
            async with asyncio.timeout(30):
                while (await consumer.getone()).key.decode() != sample.key:
                    pass
            sample.read = time.time()
            samples.append(sample)
            await asyncio.sleep(0.05 + 0.03 * (number % 11))
    finally:
        modality.close()
        await consumer.stop()
    return samples


class Modality:
    """A scanner with MPPS on one association."""

    def __init__(self, context: Context, port: int) -> None:
        listener = Peer("reclaim", "RECLAIM", "127.0.0.1", port)
        self._association = open_association(listener, [build_context(CT), build_context(MPPS)], calling_ae="CT1")
        if len(self._association.accepted_contexts) != 2:
            raise SystemExit("the listener does not accept CT and MPPS")
        self._names = context.pseudonyms
        self._slice = pydicom.dcmread(get_testdata_file("CT_small.dcm"))

    def examine(self, last: str) -> Sample:
        """One study; returns it with the time of the last response."""
        study, step = str(generate_uid()), str(generate_uid())
        uids = [str(generate_uid()) for _ in range(SLICES)]
        begun = dataset(
            PerformedProcedureStepStatus="IN PROGRESS", ScheduledStepAttributesSequence=[dataset(StudyInstanceUID=study)]
        )
        self._done(self._association.send_n_create(begun, MPPS, step)[0])
        images = [dataset(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=uid) for uid in uids]
        ended = dataset(PerformedProcedureStepStatus="COMPLETED", PerformedSeriesSequence=[dataset(ReferencedImageSequence=images)])
        for uid in uids[:-1]:
            self._store(study, uid)
        if last == LAST[0]:
            self._store(study, uids[-1])
        self._done(self._association.send_n_set(ended, MPPS, step)[0])
        if last == LAST[1]:
            self._store(study, uids[-1])
        return Sample(last, self._names.study(study), time.time())

    def close(self) -> None:
        """Release the association."""
        self._association.release()

    def _store(self, study: str, uid: str) -> None:
        self._slice.StudyInstanceUID, self._slice.SeriesInstanceUID = study, f"{study[:60]}.1"
        self._slice.SOPInstanceUID = self._slice.file_meta.MediaStorageSOPInstanceUID = uid
        self._done(self._association.send_c_store(self._slice))

    @staticmethod
    def _done(response: Dataset) -> None:
        if response.get("Status") != 0x0000:
            raise SystemExit(f"answered {response}")


def dataset(**elements: Any) -> Dataset:
    """A data set of these elements."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def table(context: Context, samples: list[Sample]) -> tuple[list[dict[str, object]], list[Target]]:
    """Milliseconds by what came last."""
    with context.database.read() as session:
        rows = {row.key: row for row in session.exec(select(Outbox).where(Outbox.topic == STUDY_RECEIVED.name))}
    waits: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        row = rows[sample.key]
        assert row.sent_at is not None
        found = waits.setdefault(sample.last, {"decided": [], "on the bus": [], "read": []})
        found["decided"].append(1000 * (row.created_at.timestamp() - sample.answered))
        found["on the bus"].append(1000 * (row.sent_at.timestamp() - sample.answered))
        found["read"].append(1000 * (sample.read - sample.answered))
    listed: list[dict[str, object]] = [
        {"last": last, "until": until, "studies": len(values), **percentiles(values)}
        for last, by_stage in waits.items()
        for until, values in by_stage.items()
    ]
    worst = max(percentiles(by_stage["on the bus"])["p95 ms"] for by_stage in waits.values())
    return listed, [at_most("MPPS completion to event on the bus, p95 in ms", worst, 100.0)]


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50 ms": round(cuts[9], 1), "p95 ms": round(cuts[18], 1), "max ms": round(max(values), 1)}


if __name__ == "__main__":
    main()
