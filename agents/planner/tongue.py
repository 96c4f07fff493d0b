"""What a foreign language is to the planner: words that give it away, frames around objects, single words. Pure."""

import re
from dataclasses import dataclass
from typing import Final

Frames = tuple[tuple[re.Pattern[str], str], ...]


@dataclass(frozen=True)
class Language:
    """A language: words that give it away, frames, and single words (empty: dropped)."""

    marks: frozenset[str]
    frames: Frames
    words: dict[str, str]


def frames_of(*pairs: tuple[str, str]) -> Frames:
    """Patterns with what stands for them in English."""
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


def word_set(listed: str) -> frozenset[str]:
    """The words of a list."""
    return frozenset(listed.split())


def words_of(**groups: str) -> dict[str, str]:
    """`english="deutsch1 deutsch2"` as a dictionary; underscores in the English are spaces, `_` alone drops the words."""
    return {word: name.replace("_", " ").strip() for name, listed in groups.items() for word in listed.split()}


COUNTED: Final = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OBJECT: Final = r"(?P<x>[^.,;!?\n]*?)"
"""The object between the parts of a verb; it does not leave its clause."""
