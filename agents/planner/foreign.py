"""Simple German and French phrasing, put into the English that the grammar reads. Pure.

Frames first, because German and French put the parts of a verb around its object; then single words. What is left over is
a stranger to the grammar, and a stranger in an order is asked about: a sentence that is half understood orders nothing.
"""

import difflib
import re
from collections.abc import Collection
from typing import Final

from agents.planner import words as english
from agents.planner.french import FRENCH
from agents.planner.german import GERMAN
from agents.planner.tongue import Language

_CLOSE: Final = 0.84
LOOKED_AT: Final = 40
"""Words of a message that are looked at for typos of a language: a long text costs no more than a short one."""
_WORD: Final = re.compile(r"[a-zß]+")


def to_english(text: str, names: Collection[str]) -> str:
    """Folded text with its frames and words in English where a word gives German or French away, else the text itself.

    `names` are words of registered names, which stay as they are.
    """
    found = set(_WORD.findall(text)) - set(names)
    for language in (GERMAN, FRENCH):
        if found & language.marks or _typos(found, language):
            return _translated(text, language, names)
    return text


def _typos(found: Collection[str], language: Language) -> bool:
    """Whether two words or more look like this language's longer words and like no English one: `schrieb enien Berciht`."""
    listed = english.KEYWORDS | english.STOPWORDS | english.NOT_TYPOS
    long = [word for word in found if len(word) >= 6 and word not in listed]
    return sum(bool(_nearest(word, language)) for word in sorted(long)[:LOOKED_AT]) >= 2


def _nearest(word: str, language: Language) -> str | None:
    # A slip of `schreibe` is likelier than the past that tells of somebody's words.
    said = {known for known, meaning in language.words.items() if meaning == "said"}
    vocabulary = [known for known in {*language.words, *language.marks} - said if len(known) >= 5]
    if any(difflib.get_close_matches(word, english.KEYWORDS, 1, _CLOSE)):
        return None
    swaps = {f"{word[:at]}{word[at + 1]}{word[at]}{word[at + 2 :]}" for at in range(len(word) - 1)}
    swapped = sorted(swaps & set(vocabulary))
    return swapped[0] if swapped else next(iter(difflib.get_close_matches(word, vocabulary, 1, _CLOSE)), None)


def _translated(text: str, language: Language, names: Collection[str]) -> str:
    def corrected(match: re.Match[str]) -> str:
        word = match.group()
        known = word in language.words or word in language.marks or word in names or len(word) < 5
        return word if known else _nearest(word, language) or word

    def worded(match: re.Match[str]) -> str:
        word = match.group()
        return word if word in names else language.words.get(word, word)

    result = _WORD.sub(corrected, text)
    for pattern, replacement in language.frames:
        result = pattern.sub(replacement, result)
    result = _WORD.sub(worded, result)
    return re.sub(r" +", " ", result).strip()
