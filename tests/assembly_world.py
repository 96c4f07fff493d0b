"""A study in the index, driven from outside: instances, steps and commitment requests come, time passes."""

from sqlmodel import func, select

from schemas.events import StudyReceived
from schemas.tables import Outbox
from services.assembly.batch_rows import NewInstance, NewStudy
from services.assembly.commitments import Reference, Request
from services.assembly.completion import complete_studies
from services.assembly.repository import record_batches
from services.assembly.rules import Rules
from services.assembly.signals import create_step, request_commitment, set_step
from services.runtime.identity import Pseudonyms

CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.22"
RULES = Rules(30.0, {"US": 120.0}, 3600.0)
NAMES = Pseudonyms(b"k" * 32)
STUDY = "1.2.3"


def uid(number):
    return f"{STUDY}.1.{number}"


def references(*numbers):
    return [Reference(CT, uid(number)) for number in numbers]


class World:
    """The index seen from its callers, with a clock that the test moves."""

    def __init__(self, database, clock):
        self.database, self.clock = database, clock

    def store(self, number, *, study=STUDY, modality="CT", stated=0):
        """One instance; returns the bells that its transaction rang."""
        now = self.clock.now()
        row = NewStudy(
            study_uid=study,
            study_key=NAMES.study(study),
            patient_key="0" * 32,
            acquired_at=now,
            first_instance_at=now,
            last_instance_at=now,
            stated_instances=stated,
        )
        instance = NewInstance(
            sop_instance_uid=uid(number),
            study_uid=study,
            series_uid=f"{study}.1.{modality}",
            sop_class_uid=CT,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            modality=modality,
            body_part="",
            path=f"aa/{number}.dcm",
            size=10,
            sha256="0" * 64,
            received_at=now,
        )
        with self.database.transaction() as tx:
            record_batches(tx, [(row, [instance])])
            return tx.rings

    def look(self, rules=RULES):
        with self.database.transaction() as tx:
            return complete_studies(tx, NAMES, rules)

    def step(self, *numbers, status=None, step_uid="9.1", studies=(STUDY,), create=False, peer="CT1"):
        with self.database.transaction() as tx:
            if create:
                outcome = create_step(tx, step_uid, studies, peer, None)
            else:
                outcome = set_step(tx, step_uid, peer, status, references(*numbers) if numbers else None)
            return outcome, tx.rings

    def ask(self, *numbers, transaction="8.1", peer="CT1"):
        with self.database.transaction() as tx:
            return request_commitment(tx, Request(transaction, peer, "RECLAIM", tuple(references(*numbers)))), tx.rings

    def events(self):
        with self.database.read() as session:
            rows = session.exec(select(Outbox).order_by(Outbox.id)).all()
        return [StudyReceived.model_validate_json(row.body) for row in rows]

    @property
    def said(self):
        return [(event.revision, event.completed_by) for event in self.events()]

    def count(self, table):
        with self.database.read() as session:
            return session.exec(select(func.count()).select_from(table)).one()
