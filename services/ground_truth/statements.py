"""The join's own SQL, one statement for all rows of a polled batch, on SQLite and on PostgreSQL.

Written out and not composed by the ORM: it runs for every event, and there composing costs several times what the database
does. SQLite is given rows of parameters (`{rows}` stands for their place) and lists as a JSON array, and gives rows back as one
JSON text: the driver gives up the interpreter's lock at every row, and gets it back only when another thread lets it go.
PostgreSQL is given both as one JSON text.
"""

from typing import Final

SCORE_COLUMNS: Final = (
    "study_key",
    "model",
    "version",
    "task",
    "patient_key",
    "revision",
    "serving",
    "predicted",
    "probabilities",
    "facets",
    "findings",
    "acquired_at",
    "scored_at",
)
PATIENT: Final = SCORE_COLUMNS.index("patient_key")
REVISION: Final = SCORE_COLUMNS.index("revision")
DOCUMENTS: Final = frozenset({"probabilities", "facets", "findings"})
"""Columns of a row that are JSON texts."""
CASE_COLUMNS: Final = (*SCORE_COLUMNS, "role", "state", "truth", "batch_id", "joined_at")
_REPLACED: Final = """
ON CONFLICT (study_key, model, version) DO UPDATE SET
    task = excluded.task, patient_key = excluded.patient_key, role = excluded.role, revision = excluded.revision,
    serving = excluded.serving, predicted = excluded.predicted, probabilities = excluded.probabilities,
    facets = excluded.facets, findings = excluded.findings, acquired_at = excluded.acquired_at, scored_at = excluded.scored_at
WHERE excluded.revision > "case".revision AND "case".state IN ('waiting', 'joined')
"""
"""The states are `states.RESCORABLE`."""
STORE_CASES: Final = {
    "sqlite": """
INSERT INTO "case" (study_key, model, version, task, patient_key, revision, serving, predicted, probabilities, facets,
    findings, acquired_at, scored_at, role, state, truth, batch_id, joined_at)
VALUES {rows}"""
    + _REPLACED,
    "postgresql": """
INSERT INTO "case" (study_key, model, version, task, patient_key, revision, serving, predicted, probabilities, facets,
    findings, acquired_at, scored_at, role, state, truth, batch_id, joined_at)
SELECT study_key, model, version, task, patient_key, revision, serving, predicted, probabilities, facets, findings,
    acquired_at AT TIME ZONE 'UTC', scored_at AT TIME ZONE 'UTC', role, state, truth, batch_id, joined_at AT TIME ZONE 'UTC'
FROM json_to_recordset(%s) AS new (study_key varchar, model varchar, version integer, task varchar, patient_key varchar,
    role varchar, revision integer, serving boolean, predicted varchar, probabilities jsonb, facets jsonb, findings jsonb,
    acquired_at timestamp, scored_at timestamp, state varchar, truth varchar, batch_id varchar, joined_at timestamp)"""
    + _REPLACED,
}
"""State, truth and batch are those of a new case; a score that replaces another leaves them."""
LABEL_COLUMNS: Final = ("study_key", "task", "source", "value", "labelled_at", "received_at")
_CORRECTED: Final = """
ON CONFLICT (study_key, task, source) DO UPDATE SET
    value = excluded.value, labelled_at = excluded.labelled_at, received_at = excluded.received_at
"""
STORE_LABELS: Final = {
    "sqlite": """
INSERT INTO ground_truth (study_key, task, source, value, labelled_at, received_at) VALUES {rows}"""
    + _CORRECTED,
    "postgresql": """
INSERT INTO ground_truth (study_key, task, source, value, labelled_at, received_at)
SELECT study_key, task, source, value, labelled_at AT TIME ZONE 'UTC', received_at AT TIME ZONE 'UTC'
FROM json_to_recordset(%s) AS new (study_key varchar, task varchar, source varchar, value varchar,
    labelled_at timestamp, received_at timestamp)"""
    + _CORRECTED,
}
ROLES: Final = {
    "sqlite": """
SELECT json_group_array(json_array(patient_key, role)) FROM (
    SELECT patient_key, min(role) AS role FROM "case"
    WHERE patient_key IN (SELECT value FROM json_each(?)) GROUP BY patient_key)""",
    "postgresql": """
SELECT patient_key, min(role) FROM "case" WHERE patient_key IN (SELECT json_array_elements_text(%s)) GROUP BY patient_key""",
}
KNOWN_CASES: Final = {
    "sqlite": """
SELECT json_group_array(json_array(
    c.study_key, c.model, c.version, c.task, c.state, c.role, c.serving, c.truth, c.batch_id, c.revision, c.acquired_at))
FROM json_each(?) AS wanted CROSS JOIN "case" AS c ON c.study_key = wanted.value""",
    "postgresql": """
SELECT c.study_key, c.model, c.version, c.task, c.state, c.role, c.serving, c.truth, c.batch_id, c.revision, c.acquired_at
FROM "case" AS c WHERE c.study_key IN (SELECT json_array_elements_text(%s))
ORDER BY c.study_key, c.model, c.version FOR UPDATE OF c""",
}
"""The columns of `repository.KnownCase`. CROSS JOIN fixes SQLite's order of the loops: from the wanted studies on."""
KNOWN_LABELS: Final = {
    "sqlite": """
SELECT json_group_array(json_array(g.study_key, g.task, g.source, g.value, g.labelled_at))
FROM json_each(?) AS wanted CROSS JOIN ground_truth AS g ON g.study_key = wanted.value""",
    "postgresql": """
SELECT g.study_key, g.task, g.source, g.value, g.labelled_at
FROM ground_truth AS g WHERE g.study_key IN (SELECT json_array_elements_text(%s))""",
}
TRUTH_COLUMNS: Final = ("truth", "state", "batch_id", "joined_at", "study_key", "model", "version")
SET_TRUTHS: Final = {
    "sqlite": """
UPDATE "case" AS c SET truth = new.column1, state = new.column2, batch_id = coalesce(new.column3, c.batch_id),
    joined_at = coalesce(c.joined_at, new.column4)
FROM (VALUES {rows}) AS new
WHERE c.study_key = new.column5 AND c.model = new.column6 AND c.version = new.column7""",
    "postgresql": """
UPDATE "case" AS c SET truth = new.truth, state = new.state, batch_id = coalesce(new.batch_id, c.batch_id),
    joined_at = coalesce(c.joined_at, new.joined_at AT TIME ZONE 'UTC')
FROM json_to_recordset(%s) AS new (truth varchar, state varchar, batch_id varchar, joined_at timestamp,
    study_key varchar, model varchar, version integer)
WHERE c.study_key = new.study_key AND c.model || '' = new.model AND c.version + 0 = new.version""",
}
"""The expressions keep PostgreSQL from the index that begins with model and version: by statistics that lag behind a growing
table it looks selective, and every change is then compared with all cases of its version.
"""
