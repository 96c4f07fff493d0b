"""What is said about a study, before it becomes an SR or an image. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.runtime.result_uids import result_uid

NOT_FOR_DIAGNOSIS = "Made by software, not verified. Not for diagnosis."
MANUFACTURER = "reclaim"
Code = tuple[str, str, str]


@dataclass(frozen=True)
class Reference:
    """An image that the result is about."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str


@dataclass(frozen=True)
class Result:
    """A champion's answer for one study revision. `weights` is the hash of the model's weights.

    The same result makes the same objects, byte for byte: UIDs derive from study, revision, model, version and weights, and
    the only time is `scored_at`.
    """

    study_uid: str
    revision: int
    model: str
    version: int
    weights: str
    task: str
    predicted: str
    probabilities: Mapping[str, float]
    findings: tuple[str, ...]
    """What was doubtful about the images, as sentences, the gravest first."""
    scored_at: datetime
    images: tuple[Reference, ...]
    codes: Mapping[str, Code] = field(default_factory=dict)

    def uid(self, *what: str) -> str:
        """A UID of this very result."""
        return result_uid(*what, self.study_uid, self.revision, self.model, self.version, self.weights)

    def series_uid(self, what: str) -> str:
        """The series of all revisions' results of this version."""
        return result_uid("series", what, self.study_uid, self.model, self.version, self.weights)

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, the likeliest first."""
        return sorted(self.probabilities.items(), key=lambda item: (-item[1], item[0]))
