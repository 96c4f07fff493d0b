"""Studies a minute from the first C-STORE to the published prediction, against transfer + decode + forward alone.

    python tests/benchmarks/e2e.py [--quick] [--studies N] [--data FOLDER] [--json FILE]

Starts `reclaim up` (embedded broker, SQLite) with a small model, pushes single-image MR studies over real associations and
reads the predictions from the bus like any outside consumer. The bare sum does the same work without durability or bus:
C-STORE into a listener that throws the bytes away, decode and preprocess, one batched forward.
"""

import asyncio
import json
import os
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from aiokafka import AIOKafkaConsumer
from bench_report import Target, arguments, at_most, finish, spread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification
from rich.console import Console
from sqlmodel import select

from listeners.demo.builtin import BuiltinSource
from listeners.demo.cohort import BEFORE, Development, Source
from listeners.demo.folder import FolderSource
from listeners.demo.stage import Stage, free_port
from listeners.demo.studies import Phase, write_development, write_phase
from listeners.dicom.send import send_folder
from listeners.training import TrainingRequest, train_and_register
from models.bundle import load_bundle
from models.predictor import Predictor
from models.preprocessing import load_study
from schemas import topics
from schemas.tables import Study
from services.runtime import registry

QUIET_S = 1.0


def main() -> None:
    """Run the benchmark and print it."""
    parser = arguments("studies a minute from C-STORE to prediction")
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--associations", type=int, default=4)
    options = parser.parse_args()
    count = 60 if options.quick else options.studies
    rounds = 1 if options.quick else 3
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RECLAIM_DICOM_QUIET_PERIOD_S"] = str(QUIET_S)
        source = FolderSource(options.data, None, "MR") if options.data else BuiltinSource(counts=(120, 40, 60))
        rows, targets = measure(source, Path(folder), count, rounds, options.associations)
    note = f"{count} MR studies of one image a round ({source.name}), {options.associations} associations."
    finish("e2e", rows, targets, options.json, note)


def measure(
    source: Source, folder: Path, count: int, rounds: int, associations: int
) -> tuple[list[dict[str, object]], list[Target]]:
    """Interleaved rounds of ours and of the bare sum."""
    phases = write_rounds(source, folder, count, rounds)
    ours, latencies, bare = [], [], []
    with Stage(folder / "stage", {}) as stage:
        prepare_model(stage, source, source.development(), folder)
        stage.start()
        warm_up = write_phase("warm-up", source, list(islice(source.stable(), 20)), folder, BEFORE, 100_000, lambda: None)
        asyncio.run(one_round(stage, warm_up, associations))
        for phase in phases:
            seconds, waits = asyncio.run(one_round(stage, phase, associations))
            ours.append(60 * count / seconds)
            latencies.extend(waits)
            bare.append(60 * count / bare_sum(stage, phase, associations))
    return table(ours, latencies, bare)


def write_rounds(source: Source, folder: Path, count: int, rounds: int) -> list[Phase]:
    """One folder of fresh studies a round; a source with too few images gives them again, as studies of their own."""
    images = list(islice(source.stable(), rounds * count))
    stream = cycle(images)
    return [
        write_phase(f"round{n}", source, list(islice(stream, count)), folder, BEFORE, n * count, lambda: None)
        for n in range(rounds)
    ]


def prepare_model(stage: Stage, source: Source, images: Development, folder: Path) -> None:
    """A trained and registered model to score with."""
    manifest = write_development(source, images, folder / "development", BEFORE, lambda: None)
    train_and_register(
        stage.context, TrainingRequest(manifest, "bench", source.task, ("MR",), epochs=2), lambda _: None, lambda _: True
    )


async def one_round(stage: Stage, phase: Phase, associations: int) -> tuple[float, list[float]]:
    """Seconds from the first C-STORE to the last prediction, and per study from the end of sending's slot to its prediction."""
    running = json.loads((stage.state / "state/run/supervisor.json").read_text())
    consumer = AIOKafkaConsumer(
        topics.PREDICTION.name, bootstrap_servers=running["bootstrap"], auto_offset_reset="earliest", fetch_max_wait_ms=50
    )
    await consumer.start()
    try:
        began_wall, began = time.time(), time.monotonic()
        sending = asyncio.create_task(asyncio.to_thread(push, phase, stage.dicom_port, associations))
        waits = await collect(consumer, stage, phase, began_wall)
        await sending
        return time.monotonic() - began, waits
    finally:
        await consumer.stop()


async def collect(consumer: AIOKafkaConsumer, stage: Stage, phase: Phase, began: float) -> list[float]:
    """Seconds from receipt of each study to its prediction on the bus, as this consumer sees it."""
    wanted = {stage.context.pseudonyms.study(uid) for uid in phase.study_uids}
    seen: dict[str, float] = {}
    async with asyncio.timeout(600):
        while len(seen) < len(wanted):
            batches = await consumer.getmany(timeout_ms=200)
            now = time.time()
            for records in batches.values():
                seen.update({key: now for key in (record.key.decode() for record in records) if key in wanted and key not in seen})
    return [seen[key] - max(at, began) for key, at in received_at(stage, wanted).items()]


def received_at(stage: Stage, keys: set[str]) -> dict[str, float]:
    """When each study's last instance was on stable storage."""
    with stage.context.database.read() as session:
        rows = session.exec(select(Study.study_key, Study.last_instance_at)).all()
    return {key: at.timestamp() for key, at in rows if key in keys}


def push(phase: Phase, port: int, associations: int) -> None:
    """C-STORE a folder; every instance must be taken."""
    summary = send_folder(phase.folder, "127.0.0.1", port, calling_ae="BENCH", called_ae="RECLAIM", associations=associations)
    if not summary.complete:
        raise SystemExit(summary.text())


def bare_sum(stage: Stage, phase: Phase, associations: int) -> float:
    """Seconds of transfer to a listener that keeps nothing, then decode and preprocess, then forward."""
    port = free_port()
    ae = AE("RECLAIM")
    ae.maximum_pdu_size, ae.maximum_associations = 131_072, 20
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0x0000)])
    try:
        began = time.monotonic()
        push(phase, port, associations)
        with stage.context.database.read() as session:
            row = registry.version(session, "bench", 1)
        loaded = load_bundle(stage.context.settings.models_dir / row.bundle)
        start_compute = time.monotonic()
        tensors = [load_study([path], loaded.spec.preprocessing).tensor for path in sorted(phase.folder.glob("*.dcm"))]
        Predictor(loaded).predict(tensors)
        return (time.monotonic() - start_compute) + (start_compute - began)
    finally:
        server.shutdown()


def table(ours: list[float], latencies: list[float], bare: list[float]) -> tuple[list[dict[str, object]], list[Target]]:
    """Rows and targets."""
    ordered = sorted(latencies)
    p50, p95 = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]
    ratio = [mine / plain for mine, plain in zip(ours, bare, strict=True)]
    rows: list[dict[str, object]] = [
        {"what": "reclaim: studies a minute, first C-STORE to last prediction on the bus", "value": spread(ours, 0)},
        {"what": "bare transfer + decode + forward, one after the other: studies a minute", "value": spread(bare, 0)},
        {"what": "ratio, round by round", "value": spread(ratio)},
        {"what": "stored to prediction on the bus, seconds, p50 / p95", "value": f"{p50:.2f} / {p95:.2f}"},
        {"what": f"the same without the quiet period of {QUIET_S:g} s", "value": f"{p50 - QUIET_S:.2f} / {p95 - QUIET_S:.2f}"},
    ]
    return rows, [at_most("stored to prediction p95 without the quiet period, seconds", p95 - QUIET_S, 1.0)]


if __name__ == "__main__":
    Console(stderr=True).print("starting; a full run takes some minutes")
    main()
