"""What the listener accepts in association negotiation (PS3.8 §9.3): SOP classes and transfer syntaxes."""

from typing import Final

from listeners.dicom.storage_classes import CURRENT, RETIRED
from schemas.settings import DicomSettings
from services.assembly.headers import is_valid_uid
from services.runtime.errors import InvalidInput

VERIFICATION: Final = "1.2.840.10008.1.1"
_DICOM: Final = "1.2.840.10008."
ALL_CLASSES: Final = (*CURRENT, *RETIRED)

USUAL_CLASSES: Final[tuple[str, ...]] = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.2",
    "1.2.840.10008.5.1.4.1.1.4.3",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.1",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
    "1.2.840.10008.5.1.4.1.1.7.4",
    "1.2.840.10008.5.1.4.1.1.11.1",
    "1.2.840.10008.5.1.4.1.1.66",
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.88.11",
    "1.2.840.10008.5.1.4.1.1.88.22",
    "1.2.840.10008.5.1.4.1.1.88.33",
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.59",
    "1.2.840.10008.5.1.4.1.1.88.67",
    "1.2.840.10008.5.1.4.1.1.128.1",
)
"""What a study of MR, CT, CR or DX usually consists of."""

TRANSFER_SYNTAXES: Final[tuple[str, ...]] = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.92",
    "1.2.840.10008.1.2.4.93",
    "1.2.840.10008.1.2.4.100",
    "1.2.840.10008.1.2.4.100.1",
    "1.2.840.10008.1.2.4.101",
    "1.2.840.10008.1.2.4.101.1",
    "1.2.840.10008.1.2.4.102",
    "1.2.840.10008.1.2.4.102.1",
    "1.2.840.10008.1.2.4.103",
    "1.2.840.10008.1.2.4.103.1",
    "1.2.840.10008.1.2.4.104",
    "1.2.840.10008.1.2.4.104.1",
    "1.2.840.10008.1.2.4.105",
    "1.2.840.10008.1.2.4.105.1",
    "1.2.840.10008.1.2.4.106",
    "1.2.840.10008.1.2.4.106.1",
    "1.2.840.10008.1.2.4.107",
    "1.2.840.10008.1.2.4.108",
    "1.2.840.10008.1.2.4.110",
    "1.2.840.10008.1.2.4.111",
    "1.2.840.10008.1.2.4.112",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.8.1",
    *(f"1.2.840.10008.1.2.4.{retired}" for retired in (52, 53, 54, 55, 56, *range(58, 67))),
)
"""Accepted for every storage class, and stored as sent: all of DICOM's but those whose pixels stay at the sender. The retired
processes of JPEG come last."""

NATIVE_SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Accepted for everything else."""


def storage_classes(settings: DicomSettings) -> tuple[str, ...]:
    """Storage classes to accept; InvalidInput names a configured one that cannot be any.

    A UID that is not of DICOM is taken for a private storage class: a site knows what its modalities send.
    """
    for name in ("sop_classes", "only_sop_classes"):
        for uid in getattr(settings, name):
            if uid not in ALL_CLASSES and (uid.startswith(_DICOM) or not is_valid_uid(uid)):
                raise InvalidInput(f"RECLAIM_DICOM_{name.upper()}: {uid!r} is no storage SOP class")
    return tuple(dict.fromkeys((*(settings.only_sop_classes or ALL_CLASSES), *settings.sop_classes)))
