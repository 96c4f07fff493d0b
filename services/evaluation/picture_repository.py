"""SQL of what is known of a stream's images."""

from collections.abc import Sequence
from typing import Final

from sqlmodel import Session, col, select

from models.signature import FORM
from schemas.drift import ImageSignature
from services.evaluation.pictures import Pictures
from services.evaluation.stream import StreamCase
from services.runtime import registry, signatures

NEWEST: Final = 2000
"""Newest cases of a stream whose images are compared: enough for every test, and bounded however long the stream is."""
_AT_ONCE: Final = 500


def pictures(session: Session, model: str, version: int, stream: Sequence[StreamCase]) -> Pictures | None:
    """What is known of the images of a version's newest cases and of its baseline; None where it is nothing."""
    studies = [case.study_key for case in stream[-NEWEST:]]
    seen = _images(session, model, version, studies)
    reference = signatures.reference(session, model, version)
    if not len(seen) or not len(reference):
        return None
    probed, changed = signatures.faults(session, model, version)
    answers = {row.case_key: (row.truth, row.predicted) for row in registry.baseline(session, model, version)}
    return Pictures(seen, reference, probed, changed, answers)


def _images(session: Session, model: str, version: int, studies: Sequence[str]) -> signatures.Images:
    """The images of studies at their newest revision."""
    table = ImageSignature
    rows: dict[str, tuple[str, bytes, bytes, bytes]] = {}
    for start in range(0, len(studies), _AT_ONCE):
        query = select(table.study_key, table.quality, table.layout, table.embedding).where(
            table.model == model,
            table.version == version,
            table.form == FORM,
            col(table.study_key).in_(studies[start : start + _AT_ONCE]),
        )
        rows |= {row[0]: tuple(row) for row in session.execute(query.order_by(col(table.revision)))}
    return signatures.unpacked(rows.values())
