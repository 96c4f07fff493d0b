"""What the status of a result means for its label: it stands, it is withdrawn, or it is no final result yet.

Words are those of HL7 v2 (table 0085, OBX-11) and FHIR (Observation.status), so that an export of either needs no translation.
"""

from typing import Final

from services.runtime.errors import InvalidInput

STANDS: Final = frozenset({"f", "c", "u", "final", "corrected", "amended", "false", "no", "0"})
WITHDRAWN: Final = frozenset(
    {"d", "w", "x", "withdrawn", "deleted", "wrong", "entered-in-error", "cancelled", "canceled", "true", "yes", "1"}
)
"""D deletes the result, W was posted wrongly (for another patient, say), X cannot be obtained. True: of a field `withdrawn`."""


def is_withdrawn(status: str) -> bool:
    """Whether the source takes its label back; InvalidInput for a word that says neither, such as preliminary."""
    word = status.strip().lower()
    if word not in STANDS | WITHDRAWN:
        raise InvalidInput("status is neither final (F, C, U) nor withdrawn (D, W, X): only a final result is a truth")
    return word in WITHDRAWN
