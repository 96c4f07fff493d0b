"""All SQL of the early warning, and the reading functions for those who show it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
from sqlmodel import Session, col, delete, func, select, update

from models.signature import FORM
from schemas.drift import DriftCalibration, DriftCase, DriftWindow, ImageSignature
from schemas.events import Prediction
from schemas.tables import Audit, Case, RegisteredModel, Study
from schemas.vocabulary import VersionState
from services.drift.sample import Reference, Sample, probabilities_of
from services.runtime import registry, signatures
from services.runtime.signatures import Images
from services.runtime.transaction import Transaction

Version = tuple[str, int]
CASES, FEED = "cases", "feed"
_AT_ONCE: Final = 500


class Answer(NamedTuple):
    """A labelled case: its class, what the model said, and in which window it was."""

    truth: str
    predicted: str
    window: int | None


def lock_version(tx: Transaction, version: Version) -> None:
    """Numbers and windows of a version are given under the lock on its model's row."""
    tx.session.exec(select(RegisteredModel).where(RegisteredModel.name == version[0]).with_for_update()).first()


def enter(tx: Transaction, version: Version, predictions: Sequence[Prediction]) -> int:
    """Keep predictions of one version in the order of arrival; a study that is known already stays as it is. Returns how many."""
    mine = (col(DriftCase.model) == version[0], col(DriftCase.version) == version[1])
    highest = int(tx.session.exec(select(func.max(DriftCase.number)).where(*mine)).one() or 0)
    studies = [each.study_key for each in predictions]
    known = set(tx.session.exec(select(DriftCase.study_key).where(*mine, col(DriftCase.study_key).in_(studies))))
    fresh = [each for each in {each.study_key: each for each in reversed(predictions)}.values() if each.study_key not in known]
    rows = [_row(each, highest + place) for place, each in enumerate(reversed(fresh), start=1)]
    return len(tx.insert_new(DriftCase, rows, returning="study_key"))


def _row(prediction: Prediction, number: int) -> DriftCase:
    shared = prediction.model_dump(
        include={"study_key", "model", "version", "revision", "patient_key", "serving", "predicted", "probabilities", "facets"}
    )
    return DriftCase(**shared, number=number, acquired_at=prediction.acquired_at, scored_at=prediction.scored_at)


def open_cases(session: Session, version: Version) -> Sequence[DriftCase]:
    """Cases that are in no window yet, in the order of arrival."""
    query = select(DriftCase).where(
        DriftCase.model == version[0], DriftCase.version == version[1], col(DriftCase.window_number).is_(None)
    )
    return session.exec(query.order_by(col(DriftCase.number))).all()


def windowed_cases(session: Session, version: Version, windows: Sequence[int]) -> Sequence[DriftCase]:
    """Cases of closed windows, in the order of arrival."""
    query = select(DriftCase).where(
        DriftCase.model == version[0], DriftCase.version == version[1], col(DriftCase.window_number).in_(windows)
    )
    return session.exec(query.order_by(col(DriftCase.number))).all()


def close(tx: Transaction, version: Version, up_to: int, window: int) -> None:
    """Put every open case up to a number into a window."""
    chosen = (
        col(DriftCase.model) == version[0],
        col(DriftCase.version) == version[1],
        col(DriftCase.window_number).is_(None),
        col(DriftCase.number) <= up_to,
    )
    tx.session.execute(update(DriftCase).where(*chosen).values(window_number=window))


def last_window(session: Session, version: Version, kind: str) -> DriftWindow | None:
    """The newest window of a kind."""
    query = select(DriftWindow).where(DriftWindow.model == version[0], DriftWindow.version == version[1], DriftWindow.kind == kind)
    return session.exec(query.order_by(col(DriftWindow.number).desc()).limit(1)).first()


def windows(session: Session, model: str, limit: int = 10) -> Sequence[DriftWindow]:
    """A model's newest windows of either kind, newest first."""
    query = select(DriftWindow).where(DriftWindow.model == model)
    return session.exec(query.order_by(col(DriftWindow.measured_at).desc(), col(DriftWindow.number).desc()).limit(limit)).all()


def reference(session: Session, version: Version, most: int) -> Reference | None:
    """The version's baseline, at most so many cases spread evenly over it; None where it has none."""
    classes = registry.classes_of(session, *version)
    rows = [row for row in registry.baseline(session, *version) if row.truth in classes and row.predicted in classes]
    images = signatures.reference(session, *version)
    places = {key: place for place, key in enumerate(images.keys)}
    pictured = [row for row in rows if row.case_key in places]
    rows = pictured or rows
    rows = rows[:: max(-(-len(rows) // most), 1)]
    if not rows:
        return None
    own = images.take([places[row.case_key] for row in rows]) if pictured else None
    probed, changed = signatures.faults(session, *version)
    truth = np.array([classes.index(row.truth) for row in rows], np.int64)
    facets = own.facets if own is not None and own.facets else ({},) * len(rows)
    return Reference(_sample(classes, rows, own, facets), truth, probed, changed)


def sample(session: Session, version: Version, classes: Sequence[str], cases: Sequence[DriftCase]) -> Sample:
    """Cases as arrays, one per patient; those of other classes, or without images where most have them, are left out."""
    kept = list({case.patient_key: case for case in reversed(cases) if case.predicted in classes}.values())[::-1]
    seen = _images(session, version, [(case.study_key, case.revision) for case in kept])
    pictured = [case for case in kept if case.study_key in seen]
    if 2 * len(pictured) < len(kept):
        return _sample(classes, kept, None, [case.facets for case in kept])
    images = signatures.unpacked([seen[case.study_key] for case in pictured])
    return _sample(classes, pictured, images, [case.facets for case in pictured])


def _sample(classes: Sequence[str], rows: Sequence[Any], images: Images | None, facets: Sequence[Mapping[str, str]]) -> Sample:
    predicted = np.array([list(classes).index(row.predicted) for row in rows], np.int64)
    return Sample(tuple(classes), probabilities_of([row.probabilities for row in rows], classes), predicted, images, tuple(facets))


def _images(session: Session, version: Version, studies: Sequence[tuple[str, int]]) -> dict[str, tuple[str, bytes, bytes, bytes]]:
    table, wanted = ImageSignature, dict(studies)
    found: dict[str, tuple[str, bytes, bytes, bytes]] = {}
    names = list(wanted)
    for start in range(0, len(names), _AT_ONCE):
        query = select(table).where(
            table.model == version[0],
            table.version == version[1],
            table.form == FORM,
            col(table.study_key).in_(names[start : start + _AT_ONCE]),
        )
        rows = (row for row in session.exec(query) if row.revision == wanted[row.study_key])
        found |= {row.study_key: (row.study_key, row.quality, row.layout, row.embedding) for row in rows}
    return found


def calibration(session: Session, version: Version, fingerprint: str) -> dict[str, float] | None:
    """Levels kept from an earlier calibration for exactly these conditions."""
    row = session.get(DriftCalibration, (*version, fingerprint))
    return dict(row.thresholds) if row else None


def keep_calibration(tx: Transaction, version: Version, fingerprint: str, levels: Mapping[str, float]) -> None:
    """Keep levels; those of a fingerprint never change."""
    row = DriftCalibration(
        model=version[0], version=version[1], fingerprint=fingerprint, thresholds=dict(levels), made_at=tx.clock.now()
    )
    tx.insert_new(DriftCalibration, [row], returning="model")


def answers(session: Session, version: Version) -> list[Answer]:
    """The labelled cases among those that the early warning has kept, for estimates beside the truth."""
    query = (
        select(Case.truth, DriftCase.predicted, DriftCase.window_number)
        .join(DriftCase, col(DriftCase.study_key) == col(Case.study_key))
        .where(Case.model == version[0], Case.version == version[1], col(Case.truth).is_not(None))
        .where(DriftCase.model == version[0], DriftCase.version == version[1])
    )
    return [Answer(truth, predicted, window) for truth, predicted, window in session.exec(query) if truth is not None]


def scoring(session: Session) -> list[Version]:
    """Every version that scores: champions of serving models, and challengers."""
    return [(row.model, row.version) for _, row in registry.scoring_versions(session)]


def serving(session: Session) -> list[Version]:
    """Champions of the models that serve."""
    return [(row.model, row.version) for _, row in registry.scoring_versions(session) if row.state == VersionState.CHAMPION]


def registered(session: Session, model: str) -> datetime:
    """When a model was registered."""
    return session.get_one(RegisteredModel, model).created_at


def resumed(session: Session, model: str) -> datetime | None:
    """When a model that was stopped was resumed last; None for one that never was."""
    return session.exec(select(func.max(Audit.at)).where(Audit.subject == model, Audit.action == "serving.resumed")).one()


def scored_times(session: Session, model: str, since: datetime, until: datetime) -> list[datetime]:
    """When a model's champions scored studies, oldest first; without those that a clock dated ahead which ran fast."""
    query = select(DriftCase.scored_at).where(
        DriftCase.model == model, col(DriftCase.serving).is_(True), col(DriftCase.scored_at).between(since, until)
    )
    return list(session.exec(query.order_by(col(DriftCase.scored_at))))


def announced(session: Session, first: datetime, last: datetime) -> int:
    """Studies announced in a span of time, of whatever kind."""
    query = select(func.count()).where(col(Study.announced_at) >= first, col(Study.announced_at) < last)
    return int(session.exec(query).one())


def scored(session: Session, model: str, first: datetime, last: datetime) -> int:
    """Those of them that a champion of the model has scored."""
    studies = select(Study.study_key).where(col(Study.announced_at) >= first, col(Study.announced_at) < last)
    query = select(func.count(func.distinct(col(DriftCase.study_key)))).where(
        DriftCase.model == model, col(DriftCase.serving).is_(True), col(DriftCase.study_key).in_(studies)
    )
    return int(session.exec(query).one())


def forget(tx: Transaction, days: int) -> None:
    """Drop what is older than its time; windows and what they measured stay."""
    before = tx.clock.now() - timedelta(days=days)
    tables: Iterable[Any] = (ImageSignature, DriftCase)
    for table in tables:
        tx.session.execute(delete(table).where(col(table.scored_at) < before))
