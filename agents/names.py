"""Names as people write them: nicknames, typos, other separators. Pure."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_WORD: Final = re.compile(r"[a-z0-9]+")
GENERIC: Final = frozenset({"model", "the", "classifier", "net", "network", "v1", "v2", "v3"})
_CLOSE: Final = 0.8
_ALIKE: Final = tuple(
    frozenset(group.split())
    for group in (
        "breast mg mammo mammography mammogram mammograms mammografie mammographie sein",
        "xray radiograph radiographs radiography rontgen rontgenbild cxr radiographie",
        "ct tomography computertomographie scanner tdm",
        "mri mr mrt irm",
        "brain cerebral cranial gehirn hirn cerveau",
        "chest thorax thoracic lung lungs pulmonary lunge poumon",
        "knee knie genou",
        "liver hepatic leber foie",
        "prostate prostata",
        "bone knochen os",
    )
)
"""Words for the same organ or modality, in English, German and French; each may stand for the others in a model's name."""


def fold(text: str) -> str:
    """Lower case without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, folded."""
    return _WORD.findall(fold(text))


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Known names that look like `name`, nearest first."""
    by_form = {" ".join(words(item)): item for item in known}
    form = " ".join(words(name))
    found = difflib.get_close_matches(form, list(by_form), n=count, cutoff=0.6)
    partial = [key for key in by_form if key not in found and set(words(form)) & (set(words(key)) - GENERIC)]
    return [by_form[key] for key in [*found, *partial]][:count]


def exact(name: str, known: Iterable[str]) -> str | None:
    """The known name that equals `name` but for case and separators."""
    form = words(name)
    return next((item for item in known if words(item) == form), None)


def exact_in(text: str, name: str) -> bool:
    """Whether a name stands in the text, whatever its separators."""
    return _position(words(text), words(name)) is not None


@dataclass(frozen=True)
class Mentioned:
    """Names that a text means: `names` for certain, in the order of mention; `unclear` where one word fits several names."""

    names: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()


def mentioned(text: str, known: Sequence[str]) -> Mentioned:
    """Find known names in a text: written out first, else by words that belong to them, typos allowed."""
    tokens = words(text)
    whole = {name: at for name in known if (at := _position(tokens, words(name))) is not None}
    found = {name: at for name, at in whole.items() if not _inside_other(name, at, whole)}
    if found:
        return Mentioned(tuple(sorted(found, key=lambda name: (found[name], name))))
    return _by_nickname(tokens, known)


def _position(tokens: Sequence[str], name: Sequence[str]) -> int | None:
    for start in range(len(tokens) - len(name) + 1):
        if list(tokens[start : start + len(name)]) == list(name):
            return start
    return None


def _inside_other(name: str, at: int, whole: dict[str, int]) -> bool:
    """Whether the mention is part of a longer name's mention (`brain` inside `brain_ct`)."""
    size = len(words(name))
    return any(
        other != name and len(words(other)) > size and start <= at < start + len(words(other)) for other, start in whole.items()
    )


def _by_nickname(tokens: Sequence[str], known: Sequence[str]) -> Mentioned:
    hits = {name: frozenset(at for at, token in enumerate(tokens) if matches(token, name)) for name in known}
    best = {name: at for name, at in hits.items() if at and not any(at < other for other in hits.values())}
    shared = {name for name, at in best.items() if any(name != other and at & their for other, their in best.items())}
    clear = sorted((name for name in best if name not in shared), key=lambda name: min(best[name]))
    return Mentioned(tuple(clear), tuple(sorted(shared)))


def matches(token: str, name: str) -> bool:
    """Whether a word is a distinctive part of a name, a typo allowed in words of four letters or more."""
    parts = [part for part in words(name) if part not in GENERIC]
    if token in parts or any(token in group and not group.isdisjoint(parts) for group in _ALIKE):
        return True
    long_parts = [part for part in parts if len(part) >= 4]
    return len(token) >= 4 and bool(difflib.get_close_matches(token, long_parts, 1, _CLOSE))
