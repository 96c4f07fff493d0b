"""What is kept of images for drift and diagnosis: arrays to rows and back, and the reference rows of a version."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlmodel import Session, col, delete, func, select

from models.signature import FORM, LAYOUT, QUALITY, Seen, Signature
from schemas.drift import ReferenceSignature
from services.runtime.transaction import Transaction

if TYPE_CHECKING:
    from models.scoring import ScoredCase  # at run time it would bring torch into services that hold no images

Floats = NDArray[np.float32]
AS_IT_IS = ""
"""The `fault` of reference images without any."""


@dataclass(frozen=True)
class Images:
    """n studies as numbers: `quality` [n, q], `layout` [n, 64], `embedding` [n, e] (e = 0 where there is none), and facets."""

    keys: tuple[str, ...]
    quality: Floats
    layout: Floats
    embedding: Floats
    facets: tuple[Mapping[str, str], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, places: Sequence[int]) -> "Images":
        """The studies at `places`."""
        chosen = list(places)
        facets = tuple(self.facets[place] for place in chosen) if self.facets else ()
        keys = tuple(self.keys[place] for place in chosen)
        return Images(keys, self.quality[chosen], self.layout[chosen], self.embedding[chosen], facets)

    def joined(self, other: "Images") -> "Images":
        """Both, one after the other; facets only where both have them."""
        facets = (*self.facets, *other.facets) if self.facets and other.facets else ()
        quality = np.concatenate([self.quality, other.quality])
        layout = np.concatenate([self.layout, other.layout])
        embedding = np.concatenate([self.embedding, other.embedding])
        return Images((*self.keys, *other.keys), quality, layout, embedding, facets)


def packed(signature: Signature, embedding: Floats | None) -> dict[str, Any]:
    """The columns of a signature's row."""
    features = np.zeros(0) if embedding is None else np.nan_to_num(embedding)
    return {
        "form": FORM,
        "quality": signature.quality.astype("<f4").tobytes(),
        "layout": signature.layout.astype("<f2").tobytes(),
        "embedding": features.astype("<f2").tobytes(),
    }


def unpacked(rows: Iterable[tuple[str, bytes, bytes, bytes]], facets: Sequence[Mapping[str, str]] = ()) -> Images:
    """Arrays from (key, quality, layout, embedding) of rows of the current form."""
    known = list(rows)
    return Images(
        tuple(row[0] for row in known),
        _stacked([row[1] for row in known], "<f4", len(QUALITY)),
        _stacked([row[2] for row in known], "<f2", LAYOUT),
        _stacked([row[3] for row in known], "<f2", None),
        tuple(facets),
    )


def _stacked(parts: Sequence[bytes], kind: str, width: int | None) -> Floats:
    if not parts:
        return np.zeros((0, width or 0), np.float32)
    return np.stack([np.frombuffer(part, dtype=kind) for part in parts]).astype(np.float32)


def reference_rows(model: str, version: int, cases: Iterable["ScoredCase"], keys: Iterable[str]) -> list[ReferenceSignature]:
    """Rows of a version's baseline cases under their baseline keys; cases without a signature are left out."""
    return [
        _row(model, version, AS_IT_IS, key, case.seen, case.embedding)
        for case, key in zip(cases, keys, strict=True)
        if case.seen is not None
    ]


def fault_rows(model: str, version: int, fault: str, seen: Mapping[str, Seen]) -> list[ReferenceSignature]:
    """Rows of reference images, by key, as they look under a fault."""
    return [_row(model, version, fault, key, each, None) for key, each in seen.items()]


def _row(model: str, version: int, fault: str, key: str, seen: Seen, embedding: Floats | None) -> ReferenceSignature:
    columns = packed(seen.signature, embedding)
    return ReferenceSignature(model=model, version=version, fault=fault, case_key=key, facets=dict(seen.facets), **columns)


def replace_reference(tx: Transaction, model: str, version: int, rows: Sequence[ReferenceSignature]) -> None:
    """Make these the reference of a version, instead of what it had of the same faults."""
    mine = (col(ReferenceSignature.model) == model, col(ReferenceSignature.version) == version)
    same = col(ReferenceSignature.fault).in_({row.fault for row in rows})
    tx.session.execute(delete(ReferenceSignature).where(*mine, same))
    tx.session.add_all(rows)


def reference(session: Session, model: str, version: int) -> Images:
    """The reference images of a version as they are, in the order of their keys."""
    return _read(session, model, version, AS_IT_IS)


def faults(session: Session, model: str, version: int) -> tuple[Images, dict[str, Images]]:
    """Reference images as they are, and under each known fault, of the newest version up to this one that has them.

    A repaired version keeps the preprocessing of its parent, so what a fault does to images is the same for it.
    """
    has = select(func.max(ReferenceSignature.version)).where(
        ReferenceSignature.model == model, ReferenceSignature.version <= version, ReferenceSignature.fault != AS_IT_IS
    )
    owner: int | None = session.exec(has).one()
    if owner is None:
        return reference(session, model, version), {}
    named = (
        select(ReferenceSignature.fault).where(ReferenceSignature.model == model, ReferenceSignature.version == owner).distinct()
    )
    names = sorted(name for name in session.exec(named) if name != AS_IT_IS)
    return _read(session, model, owner, AS_IT_IS), {name: _read(session, model, owner, name) for name in names}


def _read(session: Session, model: str, version: int, fault: str) -> Images:
    table = ReferenceSignature
    columns = (table.case_key, table.quality, table.layout, table.embedding, table.facets)
    query = select(*columns).where(  # type: ignore[call-overload]
        table.model == model, table.version == version, table.fault == fault, table.form == FORM
    )
    rows = list(session.execute(query.order_by(table.case_key)))
    return unpacked([(row[0], row[1], row[2], row[3]) for row in rows], [row[4] for row in rows])
