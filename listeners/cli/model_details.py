"""What is known of one version: its row, its bundle's record of how it came about, and its baseline."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlmodel import Session

from models.bundle import read_spec, read_training
from models.remedies import REFERENCE
from models.spec import ModelSpec
from schemas.tables import DetectorCalibration, ModelVersion
from services.evaluation import repository as evaluations
from services.runtime import registry
from services.runtime.chance import standing
from services.runtime.service import Context

Line = tuple[str, str]


def details(context: Context, name: str, number: int | None) -> list[Line]:
    """Lines of what it is and what it says. Raises InvalidInput for an unknown version, BrokenBundle for a bundle that is gone."""
    with context.database.read() as session:
        owner = registry.model(session, name)
        wanted = number or owner.champion or registry.next_version(session, name) - 1
        row = registry.version(session, name, wanted)
        classes = registry.classes_of(session, name, wanted)
        state = row.state if owner.serving or wanted != owner.champion else f"{row.state} (stopped)"
        first = [("version", f"{name} {wanted}"), ("state", state), ("task", owner.task), ("classes", ", ".join(classes))]
        baseline = [*_baseline(session, row, classes), *_detector(evaluations.calibration(session, name, wanted))]
    folder = context.settings.models_dir / row.bundle
    training = read_training(folder)
    return [*first, *_made(row), *_network(read_spec(folder)), *_start(training), *_training(training), *baseline]


def _made(row: ModelVersion) -> Iterator[Line]:
    yield "made", f"{row.created_at:%F %R}, {row.origin}"
    if row.parent is not None:
        yield "made from", f"version {row.parent}"
    if row.champion_before is not None:
        yield "took the place of", f"version {row.champion_before}"
    yield "weights", f"{row.bundle}, SHA-256 {row.sha256}"
    yield "development data", row.dataset


def _network(spec: ModelSpec) -> Iterator[Line]:
    size = " x ".join(map(str, spec.preprocessing.size))
    yield "network", f"{spec.network}, {size} pixels, {spec.preprocessing.channels} channel(s)"


def _start(training: Mapping[str, Any]) -> Iterator[Line]:
    start = training.get("start_weights")
    if start:
        yield "start weights", f"{start['source']}, SHA-256 {start['sha256']}; {start['tensors']} tensors, its own head"


def _training(training: Mapping[str, Any]) -> Iterator[Line]:
    settings = training.get("settings") or training.get("options") or {}
    if "remedy" in training:
        yield "repair", f"{training['remedy']}, run {training.get('run', '')}"
    if "added_classes" in training:
        yield "added classes", ", ".join(training["added_classes"])
    if "epochs" in settings:
        devices = f" on {settings['devices']} devices" if settings.get("devices", 1) > 1 else ""
        yield "training", f"{settings['epochs']} epochs{devices}, best {training.get('best_epoch')}, seed {settings.get('seed')}"
    if digest := training.get("data_sha256") or training.get("manifest_sha256"):
        yield "data", f"SHA-256 {digest}"
    choices = {name: value for name, value in training.get("choices", {}).items() if name != REFERENCE}
    if choices:
        yield "chosen", ", ".join(sorted(choices))


def _baseline(session: Session, row: ModelVersion, classes: tuple[str, ...]) -> Iterator[Line]:
    found = registry.baseline(session, row.model, row.version)
    yield "baseline", standing(found, classes).text if found else "none until it serves"
    shown = ("accuracy:champion", "accuracy:challenger", "mcnemar_p")
    numbers = [f"{name} {row.metrics[name]:.3g}" for name in shown if isinstance(row.metrics.get(name), float)]
    if numbers:
        yield "gate", ", ".join(numbers)


def _detector(kept: DetectorCalibration | None) -> Iterator[Line]:
    if kept is None:
        return
    year = f"in a year of {kept.batches_per_year} batches of {kept.batch_size} labelled cases"
    fall = kept.smallest_fall if kept.smallest_fall is not None and kept.smallest_fall < 1 else None
    shown = "no fall of a single class is sure to show" if fall is None else f"a fall of {100 * fall:.0f} points in one class shows"
    yield "detector", f"alarms at log evidence {kept.threshold_a:.2f} or {kept.threshold_b:.2f} ({kept.origin}); {year} {shown}"
