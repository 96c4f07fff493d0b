"""The words of the domain as closed sets, so that a typo is a type error and not a new state.

Values are what stands in the database and on the bus; they are never renamed.
"""

from enum import StrEnum


class Modality(StrEnum):
    """Modality (0008,0060) values that the service scores (PS3.3 C.7.3.1.1.1)."""

    MR = "MR"
    CT = "CT"
    CR = "CR"
    DX = "DX"


class VersionState(StrEnum):
    """Life of a model version in the registry. Archived versions have served and may come back, retired ones never do."""

    CANDIDATE = "candidate"
    CHALLENGER = "challenger"
    CHAMPION = "champion"
    ARCHIVED = "archived"
    REJECTED = "rejected"
    RETIRED = "retired"


class CaseState(StrEnum):
    """Life of a prediction on its way to an evaluation."""

    WAITING = "waiting"
    JOINED = "joined"
    BATCHED = "batched"
    WITHDRAWN = "withdrawn"
    """In a batch, but its truth was withdrawn: it counts for nothing and waits for another label."""


class CaseRole(StrEnum):
    """What a patient's cases may be used for. One patient has one role for ever (promise 7, docs/promises.md)."""

    TRIGGER = "trigger"
    TUNE = "tune"
    GATE = "gate"


class Status(StrEnum):
    """Health of a model version after an evaluation."""

    HEALTHY = "healthy"
    WATCH = "watch"
    DEGRADED = "degraded"
    UNDECIDED = "undecided"


class Diagnosis(StrEnum):
    """What kind of change explains a decline."""

    NONE = "none"
    PREVALENCE = "prevalence"
    COVARIATE = "covariate"
    CONCEPT = "concept"
    PIPELINE = "pipeline"
    UNKNOWN = "unknown"


class OrderKind(StrEnum):
    """What an agent or a person may order."""

    REPORT = "report"
    REMEDY = "remedy"
    LABEL_REQUEST = "label_request"
    ROLLBACK = "rollback"
    STOP_SERVING = "stop_serving"
    RESUME_SERVING = "resume_serving"


class Remedy(StrEnum):
    """Rungs of the ladder of remedies, cheapest first."""

    NONE = "none"
    FIX_FEED = "fix_feed"
    RETHRESHOLD = "rethreshold"
    RECALIBRATE = "recalibrate"
    HARMONISE = "harmonise"
    ADAPT_STATISTICS = "adapt_statistics"
    HEAD_ONLY = "head_only"
    PARTIAL = "partial"
    PARAMETER_EFFICIENT = "parameter_efficient"
    GRADUAL = "gradual"
    FULL = "full"


class OrderState(StrEnum):
    """Life of an order."""

    PROPOSED = "proposed"
    AWAITING_APPROVAL = "awaiting_approval"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class JobState(StrEnum):
    """Life of a long job (a fine-tuning run)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class ResultState(StrEnum):
    """Life of a result on its way to the PACS."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    GIVEN_UP = "given_up"


class MessageState(StrEnum):
    """Life of a chat message on its way to Slack or Teams; an edit queues a sent one again."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    GIVEN_UP = "given_up"


class StudyState(StrEnum):
    """Life of a study in the archive index."""

    OPEN = "open"
    COMPLETE = "complete"


class CompletedBy(StrEnum):
    """Why a study counts as complete, the strongest evidence first."""

    MPPS = "mpps"
    STORAGE_COMMITMENT = "storage_commitment"
    INSTANCE_COUNT = "instance_count"
    QUIET_PERIOD = "quiet_period"
    LONGEST_OPEN = "longest_open"


class StepState(StrEnum):
    """Performed Procedure Step Status (0040,0252), defined terms of PS3.3 C.4.14."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


class CommitmentState(StrEnum):
    """Life of a storage commitment request: its report is owed, delivered, or given up."""

    OWED = "owed"
    REPORTED = "reported"
    GIVEN_UP = "given_up"


class Verdict(StrEnum):
    """What the gate says about a challenger."""

    PROMOTE = "promote"
    REJECT = "reject"
    NEED_LABELS = "need_labels"


class UserRole(StrEnum):
    """What a person at the chat may do; each includes the ones before it."""

    VIEWER = "viewer"
    RADIOLOGIST = "radiologist"
    ML_OWNER = "ml_owner"
    ADMIN = "admin"
