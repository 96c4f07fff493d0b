"""Enters stored files into the index: which rows a file means, and the transaction that makes them durable."""

import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

from models.patient_ids import same_id
from schemas.announcements import SetAside
from schemas.tables import Instance
from services.assembly.batch_rows import NewInstance, NewStudy
from services.assembly.conflict_repository import insert_set_aside
from services.assembly.headers import InstanceFacts
from services.assembly.repository import LostRaceError, Recorded, find_instance, record_batches
from services.runtime.archive import instance_path
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.identity import Pseudonyms
from services.runtime.implementation import IMPLEMENTATION_CLASS_UID
from services.runtime.transaction import current_traceparent

ATTEMPTS: Final = 3
_NOBODY: Final = f"{IMPLEMENTATION_CLASS_UID}.0"
_TOLERATED_FUTURE: Final = timedelta(days=1)


class _RolledBack(Exception):  # noqa: N818 - it says what is meant
    """Nothing is to be kept."""


class StoredFile(NamedTuple):
    """A whole file under its final name, or about to get it. `size` and `sha256` are of the data set without file meta.

    `sha256` is empty where nobody has read the whole file for it, `path` where `path_of` was not asked yet.
    """

    facts: InstanceFacts
    transfer_syntax_uid: str
    size: int
    sha256: str
    received_at: datetime
    calling_ae: str
    traceparent: str = ""
    path: str = ""


class ArchiveIndex:
    """The index of one archive; thread-safe."""

    def __init__(self, database: Database, pseudonyms: Pseudonyms) -> None:
        self.database = database
        self.pseudonyms = pseudonyms
        self._keys = lru_cache(1024)(lambda study, series: (pseudonyms.study(study), pseudonyms.series(series)))

    def path_of(self, facts: InstanceFacts) -> str:
        """Where the archive keeps an instance, relative to its root."""
        study_key, series_key = self._keys(facts.study_uid, facts.series_uid)
        return instance_path(study_key, series_key, facts.sop_instance_uid)

    def known_as(self, sop_instance_uid: str) -> Instance | None:
        """The row of an instance, if there is one; raises Transient when the database is away."""
        with self.database.read() as session:
            return find_instance(session, sop_instance_uid)

    def enter(self, file: StoredFile) -> Recorded:
        """Commit the rows of a file; returns only when they are durable. Raises Transient when the database is away."""
        return self.enter_all([file])[0]

    def enter_all(self, files: Sequence[StoredFile]) -> list[Recorded]:
        """The same for several files in one transaction; returns what became of each, in their order.

        Studies are locked in the order of their UIDs, so that two writers cannot wait for each other.
        """
        groups: dict[str, list[int]] = {}
        for number, file in enumerate(files):
            groups.setdefault(file.facts.study_uid, []).append(number)
        for _ in range(ATTEMPTS):
            try:
                return self._enter_groups(files, [groups[uid] for uid in sorted(groups)])
            except LostRaceError:
                continue
        raise Transient("the instance is being stored by several senders at once")

    def _enter_groups(self, files: Sequence[StoredFile], groups: Sequence[Sequence[int]]) -> list[Recorded]:
        batches = [
            (self._study_row([files[number] for number in numbers]), [self._instance_row(files[number]) for number in numbers])
            for numbers in groups
        ]
        with self.database.transaction() as tx:
            recorded = record_batches(tx, batches)
        outcomes = {
            number: outcome
            for numbers, batch in zip(groups, recorded, strict=True)
            for number, outcome in zip(numbers, batch, strict=True)
        }
        return [outcomes[number] for number in range(len(files))]

    def prepare(self) -> None:
        """Have the statements of `enter_all` compiled before a study waits for it: with rows of nobody, which are rolled back."""
        facts = InstanceFacts("", _NOBODY, _NOBODY, _NOBODY, "", "", "", "", "", None)
        file = StoredFile(facts, "", 0, "", self.database.clock.now(), "")
        rows = (self._study_row([file]), [self._instance_row(file), self._instance_row(file)])
        with contextlib.suppress(_RolledBack), self.database.transaction() as tx:
            record_batches(tx, [rows])
            raise _RolledBack

    def note_conflict(self, study_key: str, name: str, kept_as: str, sha256: str, *, acknowledged: bool) -> None:
        """Note, and write once into the audit record, that other bytes came for a UID that the archive has."""
        with self.database.transaction() as tx:
            now = tx.clock.now()
            row = SetAside(kept_as=kept_as, name=name, acknowledged=acknowledged, created_at=now)
            if insert_set_aside(tx, row):
                tx.audit("dicom", "instance.conflict", study_key, kept_as=kept_as, sha256=sha256)

    def _study_row(self, files: Sequence[StoredFile]) -> NewStudy:
        """What a study starts with: the first file's facts, and who sent the last one."""
        file, last, names = files[0], files[-1], self.pseudonyms
        facts = file.facts
        # Without a patient ID all unknown patients would fall together; the study then stands for its patient.
        known = facts.patient_id
        patient = names.patient(known, facts.patient_issuer) if known else names.patient_of(facts.study_uid)
        return NewStudy(
            study_uid=facts.study_uid,
            study_key=names.study(facts.study_uid),
            patient_key=patient,
            accession_key=names.accession(facts.accession_number) if facts.accession_number else None,
            calling_ae=last.calling_ae,
            acquired_at=_credible(facts.acquired_at, file.received_at),
            first_instance_at=file.received_at,
            last_instance_at=file.received_at,
            stated_instances=max(each.facts.stated_instances for each in files),
            traceparent=last.traceparent or current_traceparent(),
            patients=len({same_id(patient) for patient in {each.facts.patient_id for each in files} if patient}),
        )

    def _instance_row(self, file: StoredFile) -> NewInstance:
        facts = file.facts
        return NewInstance(
            facts.sop_instance_uid,
            facts.study_uid,
            facts.series_uid,
            facts.sop_class_uid,
            file.transfer_syntax_uid,
            facts.modality,
            facts.body_part,
            file.path or self.path_of(facts),
            file.size,
            file.sha256,
            file.received_at,
        )


def _credible(acquired_at: datetime | None, received_at: datetime) -> datetime:
    """The study's own time unless it is absent or lies in the future."""
    if acquired_at is None or acquired_at > received_at + _TOLERATED_FUTURE:
        return received_at
    return acquired_at
