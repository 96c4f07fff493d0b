"""What labels change of what their sources have said: pure, and the same however often and in whatever order they come again.

A label's repetition is known by what is stored: it is older, or says the same at the same instant. Two kinds leave no trace
there and have to be remembered by their identity: a label from the future, which counts from its receipt, and one that another
label of the same instant has overtaken.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SourceKey = tuple[str, str, str]
"""(study_key, task, source)"""


class Said(NamedTuple):
    """What a source says of a study and task: no value where it withdraws. `at` is the text of a time, which sorts as times do."""

    study_key: str
    task: str
    source: str
    value: str | None
    at: str

    @property
    def key(self) -> SourceKey:
        """Whose statement it is, and about what."""
        return self[:3]

    @property
    def identity(self) -> str:
        """The same for the same statement, whatever event brings it; at most 64 characters."""
        words = (*self.key, "" if self.value is None else f"={self.value}", self.at)
        return f"said:{hashlib.sha256(chr(31).join(words).encode()).hexdigest()[:48]}"


Stored = Mapping[SourceKey, Said]


@dataclass
class Changes:
    """What is to be stored anew, and the identities of what has to be remembered."""

    rows: list[Said] = field(default_factory=list)
    remembered: list[str] = field(default_factory=list)


class Sayings:
    """The labels of one poll: one of most sources and studies, in the order of arrival where there are several."""

    def __init__(self) -> None:
        self._single: dict[SourceKey, Said] = {}
        self._several: dict[SourceKey, list[Said]] = {}

    def add(self, said: Iterable[Said]) -> None:
        """More, in the order in which they came."""
        single, several = self._single, self._several
        for item in said:
            key = item[:3]
            known = single.setdefault(key, item)
            if known is not item:
                several.setdefault(key, [known]).append(item)

    def doubtful(self, stored: Stored, received: str) -> dict[SourceKey, list[Said]]:
        """Those that may have been remembered: from the future, several at once, or not what is stored and not older."""
        found = dict(self._several)
        for key, item in self._single.items():
            known = stored.get(key)
            if item.at > received or (known is not None and item.at >= known.at and item[3:] != known[3:]):
                found.setdefault(key, [item])
        return found

    def changes(
        self, stored: Stored, doubtful: Mapping[SourceKey, Sequence[Said]], known: Collection[str], received: str
    ) -> Changes:
        """What is stored from now on, in key order; `known` are the identities of the doubtful that were remembered."""
        found = Changes()
        for key in sorted(self._single):
            if key in doubtful:
                _fold(stored.get(key), [item for item in doubtful[key] if item.identity not in known], received, found)
            elif key not in stored:
                found.rows.append(self._single[key])
        return found


def _fold(stored: Said | None, labels: Sequence[Said], received: str, found: Changes) -> None:
    """Take labels of one source, study and task, one after the other."""
    now, stated = stored, ""
    for label in labels:
        counts = label._replace(at=min(label.at, received))
        if now is None or counts.at > now.at or (counts.at == now.at and not _stands(now, stated, label)):
            now, stated = counts, label.at
    if now is None:
        return
    if now != stored:
        found.rows.append(now)
    # Of the others those of an earlier instant can never count again.
    overtaken = [item for item in labels if item.at > received or (item.at == now.at and item.value != now.value)]
    overtaken += [stored] if stored and stored.at == now.at and stored.value != now.value else []
    found.remembered += [item.identity for item in overtaken]


def _stands(now: Said, stated: str, other: Said) -> bool:
    """Whether a statement stands against another that counts from the same instant, as a withdrawal does.

    Of two from the future in one poll the later does, though both count from their receipt; else the last to arrive counts.
    """
    return other.at < stated or ((other.at == stated or not stated) and now.value is None)


def said_of(stored: Stored, changes: Sequence[Said]) -> Iterator[Said]:
    """All that is said once the changes are stored."""
    anew = {item.key for item in changes}
    yield from (item for key, item in stored.items() if key not in anew)
    yield from changes
