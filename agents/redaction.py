"""What enters a prompt, a step or a reply is cleaned here: no UIDs, no markup, no long free text from outside.

Facts for the agents hold no identity to begin with (they come from pseudonymised tables). This is the second fence, for
text that a person types or that a scanner wrote into a header.
"""

import re
from typing import Final

UID: Final = re.compile(r"\b\d+(?:\.\d+){4,}\b")
"""A DICOM UID (PS3.5 §9.1) as it appears in running text."""
_UNPLAIN: Final = re.compile(r"[^\w .,:;=/+%()<>-]+")


def without_uids(text: str) -> str:
    """The text with every DICOM UID replaced."""
    return UID.sub("[uid]", text)


def plain(text: str, limit: int = 120) -> str:
    """A short value from outside: UIDs out, only word characters and simple punctuation, at most `limit` characters."""
    return _UNPLAIN.sub(" ", without_uids(text))[:limit].strip()
