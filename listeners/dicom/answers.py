"""Every answer to a C-STORE: status (PS3.4 Table B.2-1, PS3.7 Annex C), Error Comment, and what the log advises.

Message ids are stable, so that a site can alert on them. Comments have at most 64 characters (LO) and no identities.
"""

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True)
class Answer:
    """What the sender is told. `tag` is the Offending Element (0000,0901), 0 for none."""

    status: int
    message_id: str
    comment: str = ""
    advice: str = ""
    tag: int = 0

    def at(self, tag: int) -> "Answer":
        """The same answer, pointing at an element."""
        return replace(self, tag=tag)

    def about(self, *names: str) -> "Answer":
        """The same answer, whose advice names files of the archive."""
        return replace(self, advice=self.advice.format(*names))

    @property
    def is_success(self) -> bool:
        """Whether the instance is in the archive, durably."""
        return self.status == 0x0000


STORED: Final = Answer(0x0000, "DCM-000")
RESENT: Final = Answer(0x0000, "DCM-001", advice="the archive has this instance already, byte for byte")
DISK_FULL: Final = Answer(
    0xA700, "DCM-101", "Out of resources: too little disk space", "free space or lower RECLAIM_DICOM_MIN_FREE_BYTES; senders retry"
)
STORAGE_AWAY: Final = Answer(
    0xA700, "DCM-102", "Temporary: storage not available, send again", "check the archive's disk or mount; senders retry"
)
INDEX_AWAY: Final = Answer(
    0xA700, "DCM-103", "Temporary: index not available, send again", "check the database (`reclaim doctor`); senders retry"
)
INDEX_BEHIND: Final = Answer(
    0xA700, "DCM-104", "Temporary: index is behind, send again", "check the database (`reclaim doctor`); senders retry"
)
TOO_LARGE: Final = Answer(
    0xA700, "DCM-105", "Out of resources: the object is too large", "raise RECLAIM_DICOM_MAX_OBJECT_BYTES if it is a real one"
)
NOT_AUTHORIZED: Final = Answer(
    0x0124, "DCM-209", "This AE may not store this SOP class", "add the class to RECLAIM_DICOM_SOP_CLASSES_BY_AE if it shall come"
)
NO_DATASET: Final = Answer(0xC000, "DCM-210", "The C-STORE announces no data set", "the sender is at fault: ask its vendor")
CLASS_NOT_NEGOTIATED: Final = Answer(
    0x0122, "DCM-201", "SOP class differs from the presentation context", "the sender is at fault: ask its vendor"
)
INVALID_INSTANCE_UID: Final = Answer(
    0x0117, "DCM-202", "Affected SOP Instance UID is not a valid UID", "the sender is at fault: ask its vendor"
)
CLASS_MISMATCH: Final = Answer(
    0xA900, "DCM-203", "SOP Class UID of data set and command differ", "the sender is at fault: ask its vendor", 0x00080016
)
INSTANCE_MISMATCH: Final = Answer(
    0xA900, "DCM-204", "SOP Instance UID of data set and command differ", "the sender is at fault: ask its vendor", 0x00080018
)
MISSING_UID: Final = Answer(
    0xA900, "DCM-205", "A UID needed for filing is missing or invalid", "correct the study at the sender and send it again"
)
BROKEN_DATASET: Final = Answer(
    0xC000, "DCM-206", "The data set is damaged or cut short", "send it again; if it stays, the file at the sender is damaged"
)
CONFLICT: Final = Answer(
    0xC000,
    "DCM-207",
    "Another object with this SOP Instance UID is archived",
    "both are kept: compare {} with {}, then remove one (runbook, An object was refused as a conflict)",
)
FAILED: Final = Answer(
    0x0110, "DCM-901", "Processing failure", "this is a defect: report it with the lines before; the sender has to send again"
)
