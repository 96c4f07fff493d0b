"""Enters stored files into the index: which rows a file means, and the transaction that makes them durable."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from schemas.tables import Instance, Study
from schemas.vocabulary import StudyState
from services.assembly.headers import InstanceFacts
from services.assembly.repository import LostRaceError, Recorded, find_instance, record_instance
from services.runtime.archive import instance_path
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.identity import Pseudonyms
from services.runtime.transaction import current_traceparent

ATTEMPTS: Final = 3
_TOLERATED_FUTURE: Final = timedelta(days=1)


@dataclass(frozen=True)
class StoredFile:
    """A whole file under its final name, or about to get it. `size` and `sha256` are of the data set without file meta."""

    facts: InstanceFacts
    transfer_syntax_uid: str
    size: int
    sha256: str
    received_at: datetime
    calling_ae: str


class ArchiveIndex:
    """The index of one archive; thread-safe."""

    def __init__(self, database: Database, pseudonyms: Pseudonyms) -> None:
        self.database = database
        self.pseudonyms = pseudonyms

    def path_of(self, facts: InstanceFacts) -> str:
        """Where the archive keeps an instance, relative to its root."""
        study_key, series_key = self.pseudonyms.study(facts.study_uid), self.pseudonyms.series(facts.series_uid)
        return instance_path(study_key, series_key, facts.sop_instance_uid)

    def known_as(self, sop_instance_uid: str) -> Instance | None:
        """The row of an instance, if there is one; raises Transient when the database is away."""
        with self.database.read() as session:
            return find_instance(session, sop_instance_uid)

    def enter(self, file: StoredFile) -> Recorded:
        """Commit the rows of a file; returns only when they are durable. Raises Transient when the database is away."""
        for _ in range(ATTEMPTS):
            try:
                with self.database.transaction() as tx:
                    return record_instance(tx, self._study_row(file), self._instance_row(file))
            except LostRaceError:
                continue
        raise Transient("the instance is being stored by several senders at once")

    def note_conflict(self, study_key: str, kept_as: str, sha256: str) -> None:
        """Write into the audit record that other bytes came for a UID that the archive has."""
        with self.database.transaction() as tx:
            tx.audit("dicom", "instance.conflict", study_key, kept_as=kept_as, sha256=sha256)

    def _study_row(self, file: StoredFile) -> Study:
        facts, names = file.facts, self.pseudonyms
        # Without a patient ID all unknown patients would fall together; the study then stands for its patient.
        patient = names.patient(facts.patient_id, facts.patient_issuer) if facts.patient_id else names.patient("", facts.study_uid)
        return Study(
            study_uid=facts.study_uid,
            study_key=names.study(facts.study_uid),
            patient_key=patient,
            accession_key=names.accession(facts.accession_number) if facts.accession_number else None,
            state=StudyState.OPEN,
            calling_ae=file.calling_ae,
            acquired_at=_credible(facts.acquired_at, file.received_at),
            first_instance_at=file.received_at,
            last_instance_at=file.received_at,
            stated_instances=facts.stated_instances,
            traceparent=current_traceparent(),
        )

    def _instance_row(self, file: StoredFile) -> Instance:
        facts = file.facts
        return Instance(
            sop_instance_uid=facts.sop_instance_uid,
            study_uid=facts.study_uid,
            series_uid=facts.series_uid,
            sop_class_uid=facts.sop_class_uid,
            transfer_syntax_uid=file.transfer_syntax_uid,
            modality=facts.modality,
            body_part=facts.body_part,
            path=self.path_of(facts),
            size=file.size,
            sha256=file.sha256,
            received_at=file.received_at,
        )


def _credible(acquired_at: datetime | None, received_at: datetime) -> datetime:
    """The study's own time unless it is absent or lies in the future."""
    if acquired_at is None or acquired_at > received_at + _TOLERATED_FUTURE:
        return received_at
    return acquired_at
