"""Which tool a command asks for by its nearest neighbours among commands already known: sentence embeddings, or letters alone."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer

from .scoring import Command
from .world import MODELS

NONE: Final = "none"
"""The label of a command that no tool serves: negations, conditions, reported speech, what cannot be done."""
_UNLABELLED: Final = frozenset({"several", "missing"})
_PARTS: Final = sorted({part for name in MODELS for part in (name, *name.split("_"))} | {"x-ray"})
_NAMED: Final = re.compile(rf"\b(?:{'|'.join(_PARTS)})\b", re.IGNORECASE)
Embed = Callable[[Sequence[str]], NDArray[np.float64]]
"""Texts to rows of unit length, so that products of rows are cosines."""


@dataclass(frozen=True)
class Near:
    """The tool of a command's neighbours, and the cosine of the nearest of them that has it."""

    tool: str
    cosine: float


def labels_of(command: Command) -> frozenset[str]:
    """The tools of the expected readings that have one request, `NONE` for a reading without any; empty where there is neither."""
    if command.family in _UNLABELLED or command.before:
        return frozenset()
    return frozenset(reading[0]["tool"] if reading else NONE for reading in command.expect if len(reading) < 2)


def masked(text: str) -> str:
    """The text without the models' names, which say nothing of what is wanted."""
    return _NAMED.sub("model", text)


def minilm(folder: Path) -> Embed:
    """Mean of the last layer over the words, as all-MiniLM-L6-v2 was trained (its `1_Pooling/config.json`).

    The libraries are loaded here, so that their memory can be measured.
    """
    import torch
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        ids = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
        means = [model(input_ids=each, attention_mask=torch.ones_like(each)).last_hidden_state[0].mean(0) for each in ids]
        return _unit(torch.stack(means).double().numpy())

    return embed


def letters(known: Sequence[str]) -> Embed:
    """A control without any model: weighted runs of two to four letters."""
    weights = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(known)
    return lambda texts: np.asarray(weights.transform(texts).toarray(), dtype=np.float64)


def nearest(
    texts: NDArray[np.float64], bank: NDArray[np.float64], labels: Sequence[str], *, k: int, itself: bool = False
) -> list[Near]:
    """For each row the label with the largest sum of cosines among its `k` neighbours; `itself`: its own place is left out."""
    cosines = texts @ bank.T
    if itself:
        np.fill_diagonal(cosines, -1.0)
    return [_vote(row, labels, k) for row in cosines]


def _vote(cosines: NDArray[np.float64], labels: Sequence[str], k: int) -> Near:
    votes: dict[str, list[float]] = defaultdict(list)
    for at in np.argsort(-cosines)[:k]:
        votes[labels[at]].append(float(cosines[at]))
    tool = max(votes, key=lambda label: sum(votes[label]))
    return Near(tool, max(votes[tool]))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
