"""When two patient IDs are one."""

import unicodedata


def same_id(patient_id: str) -> str:
    """A patient ID as it is compared, without regard to case, width and blanks: people type it at consoles."""
    return " ".join(unicodedata.normalize("NFKC", patient_id).casefold().split())
