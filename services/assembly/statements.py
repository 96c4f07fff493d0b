"""The index writer's own SQL, one statement for all rows of a batch, on SQLite and on PostgreSQL.

Written out and not composed by the ORM: it runs while objects come, and there composing costs several times what the database
does. SQLite is given rows of parameters (`{rows}` stands for their place) and lists as a JSON array, and gives instances back as
one JSON text: the driver gives up the interpreter's lock at every row, and gets it back only when a receiver lets it go.
PostgreSQL is given rows as one JSON text.
"""

from typing import Final

INSTANCE_COLUMNS: Final = (
    "sop_instance_uid",
    "study_uid",
    "series_uid",
    "sop_class_uid",
    "transfer_syntax_uid",
    "modality",
    "body_part",
    "path",
    "size",
    "sha256",
    "received_at",
)
INSERT_INSTANCES: Final = {
    "sqlite": """
INSERT INTO instance (sop_instance_uid, study_uid, series_uid, sop_class_uid, transfer_syntax_uid, modality, body_part, path,
    size, sha256, received_at)
VALUES {rows}""",
    "postgresql": """
INSERT INTO instance (sop_instance_uid, study_uid, series_uid, sop_class_uid, transfer_syntax_uid, modality, body_part, path,
    size, sha256, received_at)
SELECT sop_instance_uid, study_uid, series_uid, sop_class_uid, transfer_syntax_uid, modality, body_part, path,
    size, sha256, received_at
FROM json_to_recordset(%s) AS new (sop_instance_uid varchar, study_uid varchar, series_uid varchar, sop_class_uid varchar,
    transfer_syntax_uid varchar, modality varchar, body_part varchar, path varchar, size bigint, sha256 varchar,
    received_at timestamptz)""",
}
KNOWN_INSTANCES: Final = {
    "sqlite": """
SELECT json_group_array(json_array(i.sop_instance_uid, i.path, i.size, i.transfer_syntax_uid, i.received_at, i.purged_at))
FROM json_each(?) AS wanted CROSS JOIN instance AS i ON i.sop_instance_uid = wanted.value""",
    "postgresql": """
SELECT sop_instance_uid, path, size, transfer_syntax_uid, received_at, purged_at
FROM instance WHERE sop_instance_uid = ANY(%s)""",
}
"""CROSS JOIN fixes SQLite's order of the loops: from the wanted instances on."""
_STUDY: Final = (
    "study_uid, study_key, patient_key, state, revision, instances, last_instance_at, opened_at, stated_instances, look_at, "
    "ring_at, accession_key, calling_ae, traceparent"
)
LOCKED_STUDIES: Final = {
    "sqlite": f"SELECT {_STUDY} FROM study WHERE study_uid IN (SELECT value FROM json_each(?)) ORDER BY study_uid",  # noqa: S608
    "postgresql": f"SELECT {_STUDY} FROM study WHERE study_uid = ANY(%s) ORDER BY study_uid FOR UPDATE",  # noqa: S608
}
"""The columns of `batch_rows.StudyRow`, in its order."""
NEW_STUDY_COLUMNS: Final = (
    "study_uid",
    "study_key",
    "patient_key",
    "accession_key",
    "state",
    "revision",
    "instances",
    "calling_ae",
    "acquired_at",
    "first_instance_at",
    "last_instance_at",
    "stated_instances",
    "traceparent",
)
_NEW_STUDY: Final = ", ".join(NEW_STUDY_COLUMNS)
INSERT_STUDIES: Final = {
    "sqlite": f"INSERT INTO study ({_NEW_STUDY}) VALUES {{rows}} ON CONFLICT DO NOTHING RETURNING study_uid",  # noqa: S608
    "postgresql": f"""
INSERT INTO study ({_NEW_STUDY})
SELECT {_NEW_STUDY}
FROM json_to_recordset(%s) AS new (study_uid varchar, study_key varchar, patient_key varchar, accession_key varchar, state varchar,
    revision integer, instances integer, calling_ae varchar, acquired_at timestamptz, first_instance_at timestamptz,
    last_instance_at timestamptz, stated_instances integer, traceparent varchar)
ON CONFLICT DO NOTHING RETURNING study_uid""",  # noqa: S608
}
STUDIES_WITH_STEPS: Final = {
    "sqlite": "SELECT DISTINCT study_uid FROM performed_step_study WHERE study_uid IN (SELECT value FROM json_each(?))",
    "postgresql": "SELECT DISTINCT study_uid FROM performed_step_study WHERE study_uid = ANY(%s)",
}
CHANGED_COLUMNS: Final = (
    "study_uid",
    "state",
    "revision",
    "instances",
    "last_instance_at",
    "opened_at",
    "stated_instances",
    "look_at",
    "ring_at",
    "accession_key",
    "calling_ae",
    "traceparent",
)
UPDATE_STUDIES: Final = {
    "sqlite": """
UPDATE study AS s SET state = new.column2, revision = new.column3, instances = new.column4, last_instance_at = new.column5,
    opened_at = new.column6, stated_instances = new.column7, look_at = new.column8, ring_at = new.column9,
    accession_key = new.column10, calling_ae = new.column11, traceparent = new.column12
FROM (VALUES {rows}) AS new
WHERE s.study_uid = new.column1""",
    "postgresql": """
UPDATE study AS s SET state = new.state, revision = new.revision, instances = new.instances,
    last_instance_at = new.last_instance_at, opened_at = new.opened_at, stated_instances = new.stated_instances,
    look_at = new.look_at, ring_at = new.ring_at, accession_key = new.accession_key, calling_ae = new.calling_ae,
    traceparent = new.traceparent
FROM json_to_recordset(%s) AS new (study_uid varchar, state varchar, revision integer, instances integer,
    last_instance_at timestamptz, opened_at timestamptz, stated_instances integer, look_at timestamptz, ring_at integer,
    accession_key varchar, calling_ae varchar, traceparent varchar)
WHERE s.study_uid = new.study_uid""",
}
