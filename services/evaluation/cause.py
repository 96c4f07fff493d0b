"""What kind of change it was, as the diagnosis states it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.vocabulary import Diagnosis


@dataclass(frozen=True)
class Cause:
    """The kind, in words for the root-cause line, the p-value of the test behind it, and all tests that were made."""

    kind: Diagnosis
    what: str = ""
    p_value: float | None = None
    tests: Mapping[str, float] = field(default_factory=dict)
