"""Studies a second of the scoring consumer against a bare forward pass on tensors that are already in memory.

    python tests/benchmarks/inference.py [--quick] [--networks resnet50,densenet121] [--studies N] [--rounds N]
        [--data FOLDER] [--json FILE]

Ours is the whole path of a polled batch: validate the events, look into the inbox, read the registry, read and decode the
DICOM files, prepare, forward, and commit predictions, inbox and outbox (SQLite, synchronous=FULL). The bare peer has the
same module, batch, threads and precision and its input ready: on the CPU in memory, on a GPU in the GPU's memory.
Rounds of both alternate, and the ratio is taken within a round, so that another load on the machine hits both.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from bench_report import Target, arguments, at_least, finish, spread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from torch.nn import functional

from listeners.demo.folder import load
from models.bundle import LoadedModel, load_bundle, network_of, save_bundle
from models.predictor import Predictor
from models.preprocessing import load_study
from models.spec import DicomWindow, ModelSpec, PreprocessingSpec
from schemas.events import SeriesReference, StudyReceived
from schemas.settings import DatabaseSettings, InferenceSettings, Settings
from schemas.tables import ModelVersion
from schemas.topics import STUDY_RECEIVED
from services.inference.app import make_consumer
from services.inference.handlers import Inference
from services.runtime import registry
from services.runtime.archive import instance_path, series_folder
from services.runtime.clock import SystemClock
from services.runtime.consumer import process
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record, headers_of
from services.runtime.migrations import upgrade
from services.runtime.service import Context

SIDE = 512
SIZE = 224
BOUNDS = {"cpu": 0.9, "cuda": 0.8}
TARGETED = ("resnet50", "densenet121")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    studies: int
    rounds: int
    batch: int
    threads: int
    workers: int


@dataclass(frozen=True)
class Cost:
    """Seconds of one round: on the clock, and of all the process's threads. The second ignores other loads on the machine."""

    wall: float
    cpu: float


def main() -> None:
    """Run the benchmark and print it."""
    parser = arguments("studies a second of the scoring consumer against a bare forward pass")
    parser.add_argument("--networks", default="small,resnet50,densenet121")
    parser.add_argument("--studies", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=InferenceSettings().decode_workers)
    parser.add_argument("--devices", default="cpu,cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    plan = Plan(
        studies=options.studies or 64,
        rounds=options.rounds or (2 if options.quick else 11),
        batch=options.batch,
        threads=options.threads,
        workers=options.workers,
    )
    cases = [(network, device) for device in options.devices.split(",") for network in options.networks.split(",")]
    measured = [measure(network, device, plan, options.data) for network, device in cases]
    images = f" from {options.data.name}" if options.data else ""
    note = f"{plan.studies} studies of one {SIDE}x{SIDE} CT image{images}"
    targets = [target for _, target in measured if target] + _missing(options.devices)
    finish("inference", [row for row, _ in measured], targets, options.json, f"{note}, input {SIZE}x{SIZE}, {plan.rounds} rounds.")


def _missing(devices: str) -> list[Target]:
    return [] if "cuda" in devices else [at_least("consumer / bare, GPU, bfloat16 (no GPU on this machine)", None, BOUNDS["cuda"])]


def measure(network: str, device: str, plan: Plan, data: Path | None) -> tuple[dict[str, Any], Target | None]:
    """One network on one device, in a state folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        context = make_context(Path(folder), device, plan)
        loaded = register(context, network)
        studies = make_archive(context, plan.studies, data)
        consumer = make_consumer(context)
        try:
            return compare(context, consumer, loaded, studies, plan, network)
        finally:
            consumer.close()
            context.database.close()


def compare(
    context: Context, consumer: Inference, loaded: LoadedModel, studies: list[StudyReceived], plan: Plan, network: str
) -> tuple[dict[str, Any], Target | None]:
    """Interleaved rounds of the bare forward and of the consumer."""
    predictor = Predictor(loaded, context.settings.inference.device, context.settings.inference.precision, plan.batch)
    bare = bare_forward(context, predictor, studies, plan)
    ours: list[Cost] = []
    peer: list[Cost] = []
    for turn in range(plan.rounds + 1):  # the first warms up and is dropped
        records = [record(study, turn + 1) for study in studies]
        work = [(peer, bare), (ours, partial(consume, context, consumer, records))]
        for costs, run in work if turn % 2 else reversed(work):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
    return _row(network, predictor, plan, peer[1:], ours[1:], decoding(context, studies))


def _row(
    network: str, predictor: Predictor, plan: Plan, peer: list[Cost], ours: list[Cost], decode: float
) -> tuple[dict[str, Any], Target | None]:
    device = predictor.device.type
    precision = "bfloat16" if predictor._autocast else "float32"
    ratios = [bare.wall / own.wall for bare, own in zip(peer, ours, strict=True)]
    work = [bare.cpu / own.cpu for bare, own in zip(peer, ours, strict=True)]
    row = {
        "network": network,
        "device": device,
        "precision": precision,
        "batch": plan.batch,
        "threads": plan.threads,
        "decode threads": plan.workers,
        "bare forward, studies/s": spread([plan.studies / each.wall for each in peer], 1),
        "consumer, studies/s": spread([plan.studies / each.wall for each in ours], 1),
        "consumer / bare": spread(ratios),
        "the same in CPU seconds": spread(work),
        "decode + prepare alone, one thread, ms a study": round(1000 * decode, 2),
    }
    name = f"consumer / bare, {network}, {device}, {precision}"
    target = at_least(name, round(statistics.median(ratios), 3), BOUNDS[device]) if network in TARGETED else None
    return row, target


def bare_forward(context: Context, predictor: Predictor, studies: list[StudyReceived], plan: Plan) -> Callable[[], None]:
    """Forward passes on tensors in memory, in a thread with the same number of cores."""
    spec = predictor.spec.preprocessing
    tensors = torch.cat([load_study(paths_of(context, study), spec).tensor for study in studies])
    placed = tensors.to(predictor.device).contiguous(memory_format=torch.channels_last)
    batches = [batch.clone(memory_format=torch.preserve_format) for batch in torch.split(placed, plan.batch)]
    module, autocast = predictor._module, predictor._autocast
    pool = ThreadPoolExecutor(1, "bare", torch.set_num_threads, (plan.threads,))

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(predictor.device.type, dtype=torch.bfloat16, enabled=autocast):
            for batch in batches:
                module(batch)
        if predictor.device.type == "cuda":
            torch.cuda.synchronize()

    return lambda: pool.submit(forward).result()


def consume(context: Context, consumer: Inference, records: list[Record]) -> None:
    """Polled batches through the consumer."""
    for start in range(0, len(records), consumer.max_records):
        rejected = process(context.database, consumer, records[start : start + consumer.max_records])
        assert rejected == 0


def decoding(context: Context, studies: list[StudyReceived]) -> float:
    """Seconds a study to read, decode and prepare with one core."""
    spec = PreprocessingSpec(size=(SIZE, SIZE), intensity=DicomWindow())
    with ThreadPoolExecutor(1, "decode", torch.set_num_threads, (1,)) as pool:
        started = time.perf_counter()
        for study in studies:
            pool.submit(load_study, paths_of(context, study), spec).result()
        return (time.perf_counter() - started) / len(studies)


def make_context(folder: Path, device: str, plan: Plan) -> Context:
    """A deployment with its own SQLite file."""
    inference = InferenceSettings(device=device, batch_size=plan.batch, decode_workers=plan.workers, threads=plan.threads)
    url = f"sqlite:///{folder / 'reclaim.sqlite'}"
    settings = Settings(state_dir=folder, database=DatabaseSettings(url=url), inference=inference)
    settings.archive_dir.mkdir()
    database = Database(url)
    upgrade(database)
    return Context(settings, database, SystemClock(), Pseudonyms(b"benchmark key of thirty-two bytes"))


def register(context: Context, network: str) -> LoadedModel:
    """An untrained model of that network as champion."""
    spec = ModelSpec(
        name=network,
        task="finding",
        classes=("a", "b", "c", "d"),
        network=network,
        preprocessing=PreprocessingSpec(size=(SIZE, SIZE), intensity=DicomWindow()),
    )
    folder = context.settings.models_dir / network / "1"
    info = save_bundle(folder, spec, network_of(spec))
    with context.database.transaction() as tx:
        registry.register_model(tx, network, "finding", list(spec.classes), {})
        row = ModelVersion(model=network, version=1, bundle=f"{network}/1", sha256=info.sha256, created_at=tx.clock.now())
        registry.add_version(tx, row, [], actor="benchmark")
    return load_bundle(folder)


def make_archive(context: Context, count: int, data: Path | None) -> list[StudyReceived]:
    """Studies of one uncompressed 16-bit image each, with noise of its own: pydicom's real CT slice, or images of `data`."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.WindowCenter, dataset.WindowWidth = (128, 256) if data else (40, 400)
    sources = [item.image for item in load(data).items[:count]] if data else [dataset.pixel_array]
    dataset.Rows = dataset.Columns = SIDE
    rng = np.random.default_rng(0)
    large = [enlarged(image) for image in sources]
    return [_store(context, dataset, image + rng.normal(0, 5, image.shape)) for image in islice(cycle(large), count)]


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image as float [SIDE, SIDE]."""
    pixels = torch.from_numpy(image.astype(np.float32))[None, None]
    return functional.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0].numpy()


def _store(context: Context, dataset: pydicom.Dataset, pixels: np.ndarray) -> StudyReceived:
    uid, now = generate_uid(), context.clock.now()
    key, series = context.pseudonyms.study(uid), context.pseudonyms.series(uid)
    dataset.PixelData = np.clip(pixels, 0, 4095).astype(np.int16).tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    path = context.settings.archive_dir / instance_path(key, series, uid)
    path.parent.mkdir(parents=True)
    dataset.save_as(path)
    reference = SeriesReference(series_key=series, modality="CT", path=series_folder(key, series), instances=1)
    return StudyReceived(
        study_key=key,
        patient_key=key,
        revision=1,
        modality="CT",
        acquired_at=now,
        received_at=now,
        completed_by="quiet_period",
        series=(reference,),
    )


def paths_of(context: Context, study: StudyReceived) -> list[Path]:
    """The files of a study."""
    return sorted((context.settings.archive_dir / study.series[0].path).glob("*.dcm"))


def record(study: StudyReceived, revision: int) -> Record:
    """A study event as it lies on the bus; every revision is scored anew."""
    data = study.model_copy(update={"revision": revision})
    headers = headers_of(STUDY_RECEIVED, f"{study.study_key}-{revision}", study.received_at)
    return Record(STUDY_RECEIVED.name, 0, revision, study.study_key, headers, data.model_dump_json().encode())


if __name__ == "__main__":
    main()
