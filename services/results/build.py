"""From a claimed prediction to the DICOM objects: reads index, registry and archive; identity stays inside the objects."""

from collections.abc import Iterable, Mapping
from typing import Final

from pydicom.dataset import Dataset

from models.findings import CODES, Finding, Severity
from schemas.events import Prediction
from schemas.settings import Settings
from services.results import repository
from services.results.finding import Result
from services.results.header import read_header
from services.runtime.database import Database
from services.runtime.errors import InvalidInput, Transient

GRAVITY: Final = (Severity.NOTE, Severity.DOUBT, Severity.FAULT)
LABELS: Final = {Severity.NOTE: "Note", Severity.DOUBT: "Doubt about the images", Severity.FAULT: "Fault in the images"}


def build_objects(settings: Settings, database: Database, prediction: Prediction) -> list[Dataset]:
    """The SR and the Secondary Capture of a prediction, as the settings ask.

    Raises Transient while archive or database are away, InvalidInput when they do not have what is needed.
    """
    from services.results.capture import build_capture  # noqa: PLC0415 - highdicom takes a second, and most processes send nothing
    from services.results.report import build_report  # noqa: PLC0415 - as above

    if not settings.archive_dir.is_dir():
        raise Transient("the archive folder is not there")
    with database.read() as session:
        subject = repository.subject(session, prediction.study_key, prediction.model, prediction.version)
    header = read_header(settings.archive_dir / subject.header_path)
    if str(header.get("StudyInstanceUID", "")).strip() != subject.study_uid:
        raise InvalidInput("the archive's file belongs to another study than the index says: run `reclaim reindex`")
    result = _result(prediction, subject, settings)
    objects = [build_report(result, header)] if settings.results.structured_report else []
    return objects + ([build_capture(result, header)] if settings.results.secondary_capture else [])


def _result(prediction: Prediction, subject: repository.Subject, settings: Settings) -> Result:
    return Result(
        study_uid=subject.study_uid,
        revision=prediction.revision,
        model=prediction.model,
        version=prediction.version,
        weights=subject.weights,
        task=prediction.task,
        predicted=prediction.predicted,
        probabilities=prediction.probabilities,
        findings=in_words(prediction.findings, prediction.finding_details),
        scored_at=prediction.scored_at,
        images=subject.images,
        codes=settings.results.codes,
    )


def in_words(codes: Iterable[str], details: Mapping[str, str]) -> tuple[str, ...]:
    """Findings as sentences for a reader of images, the gravest first. A code that this version does not know stays a code."""
    known = {code: Finding(code, details.get(code, "")) if code in CODES else None for code in codes}
    ranked = sorted(known.items(), key=lambda item: -GRAVITY.index(item[1].severity if item[1] else Severity.DOUBT))
    return tuple(
        f"{LABELS[each.severity]}: {each.sentence()}" if each else f"{LABELS[Severity.DOUBT]}: {code}" for code, each in ranked
    )
