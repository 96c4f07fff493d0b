"""The rung `harmonise`: images of another look are told apart and read in their own way; all others pass unchanged.

No weight is trained. From recent images, labelled or not, and held-out old ones follow the discriminant of the two kinds, the
change of grey levels and the BatchNorm statistics; the labelled new cases choose what of these is used and correct the last
layer and the logits. An old class can pay only through old images that are taken for new ones: the bar for that is chosen on
held-out looks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from models.adaptation import batch_norms, estimate_statistics
from models.bundle import LoadedModel, network_of
from models.data import TensorSet
from models.harmonisation import ATTRIBUTE, harmonise, harmoniser_of, mapped, set_head, set_statistics
from models.kind_calibration import fitted, spread, studies_of
from models.kind_head import head_of_kind, logits_and_features, merged
from models.logits import Floats, Integers, StudyLogits, balanced_loss, class_recalls, study_logits
from models.look import FORM, look_of
from models.sampling import seeded
from models.selection import PRICE, TOLERANCE
from models.separation import Separation, separate
from models.spec import MOST_KINDS, Calibration, GreyLevels, Harmonisation, ImageKind, ModelSpec
from models.standardisation import distance, grey_levels

FEWEST: Final = 20
"""Images of either kind without which nothing is told of how they look."""
MISTAKEN: Final = 0.20
"""Largest share of known images that may look new: beyond it the kinds cannot be told apart."""
NEW: Final = 0.25
"""Least share of the recent images that must look new."""
MEASURED: Final = 128
"""Images of the new kind that its statistics are estimated on."""
CHOOSING: Final = 160
"""Most labelled studies that choose among the ways of reading; the one chosen is corrected on all of them."""
SHADES: Final = 2048
"""Pixels of an image that count for the distribution of shades."""
BARS: Final = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Log odds from which an image counts as new that are tried."""
_SOME = 6
ALWAYS: Final = 1e9

Costs = dict[str, float]
Flags = np.typing.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Harmonised:
    """The network, its specification and the record; `unchanged` with a note where there is nothing to be had."""

    module: nn.Module
    spec: ModelSpec
    record: dict[str, Any]
    unchanged: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class _Way:
    """A way of reading the new kind: a network that reads every image so, and its answers to labelled new cases.

    The answers are without the kind's correction, and with changes of the last layer that were fitted without their patient.
    """

    kind: ImageKind
    network: nn.Module
    taught: StudyLogits
    record: dict[str, Any]


class _NothingToDo(Exception):  # noqa: N818 - no fault, an answer
    """Why the champion stays as it is."""

    def __init__(self, note: str, **numbers: float) -> None:
        super().__init__(note)
        self.record: dict[str, Any] = {"note": note} | {name: round(value, 4) for name, value in numbers.items()}


def harmonise_new(
    champion: LoadedModel,
    taught: TensorSet,
    old: TensorSet,
    recent: TensorSet,
    device: torch.device,
    seed: int = 0,
    usual: Mapping[int, float] | None = None,
) -> Harmonised:
    """Have the champion read images that look like the `recent` ones and unlike the `old` ones in their own way.

    `taught` are labelled new studies; of `old` studies of the development data and of `recent` ones no label is used. `usual`
    are the recalls of the classes before the decline, which the new images shall be read with as well. The champion is not touched.
    """
    try:
        return _Rung(champion, taught, old, recent, device, seed, usual or {}).run()
    except _NothingToDo as reason:
        return Harmonised(champion.module, champion.spec, reason.record, unchanged=True)


class _Rung:
    """One run. Looks and shades are taken on the CPU, where the prepared images lie."""

    def __init__(
        self,
        champion: LoadedModel,
        taught: TensorSet,
        old: TensorSet,
        recent: TensorSet,
        device: torch.device,
        seed: int,
        usual: Mapping[int, float],
    ) -> None:
        self.champion, self.taught, self.old, self.device, self.seed = champion, taught, old, device, seed
        self.known, self.recent = _images(old), _images(recent)
        self.usual = usual
        self.groups = _groups(old), _groups(recent)
        self.mean, self.std = champion.spec.preprocessing.mean, champion.spec.preprocessing.std

    def run(self) -> Harmonised:
        separation = self._separated()
        members = [image for image, score in zip(self.recent, separation.recent, strict=True) if score > 0]
        drawn = torch.randperm(len(members), generator=seeded(self.seed, _SOME))[:MEASURED].tolist()
        members = [members[place] for place in drawn]
        self._refuse_negatives(members)
        known, new = (self._shades(images) for images in (self.known, members))
        levels = grey_levels(known, new)
        explained = {"before": distance(known, new), "after": distance(known, mapped(torch.from_numpy(new), levels).numpy())}
        present = study_logits(self.champion.module.to(self.device), self.taught, self.device)
        chosen, way, costs = self._best(self._ways(separation, levels), members, present)
        bar, trials = self._bar(separation, way, present)
        kind = way.kind.model_copy(update={"intercept": separation.discriminant.intercept - bar})
        spec = _with_kind(self.champion.spec, kind)
        record = {
            "chosen": chosen,
            "candidates": costs,
            **way.record,
            "bar": bar,
            "bars": trials,
            "known_images": len(self.known),
            "recent_images": len(self.recent),
            "known_that_look_new": round(float((separation.known > bar).mean()), 4),
            "recent_that_look_new": round(float((separation.recent > bar).mean()), 4),
            "distance_of_shades": {name: round(value, 4) for name, value in explained.items()},
        }
        return Harmonised(_network(spec, way.network), spec, record)

    def _separated(self) -> Separation:
        """Raises _NothingToDo where the recent images are too few, too like the known ones, or not of a new kind."""
        if min(len(self.known), len(self.recent)) < FEWEST:
            raise _NothingToDo(f"fewer than {FEWEST} old or recent images", known=len(self.known), recent=len(self.recent))
        harmonisation = self.champion.spec.harmonisation
        if harmonisation is not None and len(harmonisation.kinds) == MOST_KINDS:
            raise _NothingToDo(f"the model tells {MOST_KINDS} new kinds of images already")
        found = separate(self._looks(self.known), self._looks(self.recent), *self.groups)
        mistaken, new = float((found.known > 0).mean()), float((found.recent > 0).mean())
        if mistaken > MISTAKEN or new < NEW or (found.recent > 0).sum() < FEWEST:
            numbers = {"known_that_look_new": mistaken, "recent_that_look_new": new}
            raise _NothingToDo("the recent images do not look different enough to be told from the old ones", **numbers)
        return found

    def _refuse_negatives(self, members: Sequence[torch.Tensor]) -> None:
        """Black and white exchanged is a fault of the feed: it shall be seen and mended there."""
        layouts = [_layout(images) for images in (self.known, members)]
        likeness = float(np.corrcoef(layouts[0], layouts[1])[0, 1])
        if likeness < 0:
            raise _NothingToDo("the new images look like negatives of the old ones: the feed is to be mended", likeness=likeness)

    def _ways(self, separation: Separation, levels: GreyLevels) -> dict[str, ImageKind]:
        """Ways of reading the new kind, without a correction of the logits and with the statistics still to be estimated."""
        found = separation.discriminant
        plain = ImageKind(direction=tuple(found.direction.tolist()), intercept=found.intercept)
        kinds = {"logits": plain, "grey levels": plain.model_copy(update={"grey_levels": levels})}
        if batch_norms(self.champion.module):
            kinds["statistics"] = plain.model_copy(update={"statistics": True})
            kinds["both"] = plain.model_copy(update={"grey_levels": levels, "statistics": True})
        return kinds

    def _forced(self, kind: ImageKind, members: Sequence[torch.Tensor]) -> nn.Module:
        """A network that takes every image for the new kind."""
        spec = _with_kind(self.champion.spec, kind.model_copy(update={"intercept": ALWAYS}))
        network = _network(spec, self.champion.module)
        harmoniser = harmoniser_of(network)
        assert harmoniser is not None
        if kind.statistics:
            plain, images, number = _plain(self.champion.spec, self.champion.module), list(members), len(harmoniser.spec.kinds) - 1
            if kind.grey_levels is not None:
                images = list(harmoniser.standardised(torch.stack(images), torch.full((len(images),), number)))
            statistics = estimate_statistics(plain, images, self.device)
            set_statistics(harmoniser, number, statistics, batch_norms(network))
        return network.to(self.device)

    def _best(
        self, kinds: Mapping[str, ImageKind], members: Sequence[torch.Tensor], present: StudyLogits
    ) -> tuple[str, _Way, Costs]:
        """The way with the least class-balanced loss on labelled new studies. Raises _NothingToDo where none beats the champion."""
        base = self.champion.spec.calibration
        drawn = torch.randperm(len(self.taught), generator=seeded(self.seed, _SOME, 1))[:CHOOSING].sort().values
        few, chosen = self.taught.subset(drawn.tolist()), np.isin(np.arange(len(present)), drawn.numpy())
        champion, rest = studies_of(present, chosen), self.taught.subset(np.flatnonzero(~chosen).tolist())
        networks = {name: self._forced(kind, members) for name, kind in kinds.items()}
        costs = {"as before": balanced_loss(champion.probabilities(base), champion.labels)}
        seen = {name: logits_and_features(networks[name], few, self.device) for name, kind in kinds.items() if _changes(kind)}
        for name in kinds:
            costs[name] = fitted(seen[name][0] if name in seen else champion, base, self.seed, _patients(few))[1]
        best = min(costs, key=lambda name: costs[name])
        if costs[best] >= costs["as before"]:
            raise _NothingToDo("no other way of reading the new images suits their labels better", **costs)
        taught = (
            merged(chosen, seen[best], logits_and_features(networks[best], rest, self.device))
            if best in seen and len(rest)
            else logits_and_features(networks[best], self.taught, self.device)
        )
        way = self._corrected(kinds[best], networks[best], *taught, present)
        return best, way, {name: round(cost, 5) for name, cost in costs.items()}

    def _corrected(self, kind: ImageKind, network: nn.Module, taught: StudyLogits, features: Floats, present: StudyLogits) -> _Way:
        """The way with its last layer and logits corrected: for the likelihood, then for what each class has to keep."""
        base, patients = self.champion.spec.calibration, _patients(self.taught)
        found = fitted(taught, base, self.seed, patients)[0]
        said = _corrected(_corrected(taught, found), base)
        head = head_of_kind(said, features, self.seed, patients)
        heat = found.temperature * base.temperature
        unseen = replace(taught, logits=taught.logits + heat * (head.logits - said.logits))
        before = class_recalls(present.probabilities(base), present.labels)
        moves = spread(replace(said, logits=said.logits + head.moved(features)), self.usual, before)
        offsets = np.asarray(found.offsets or (0.0,) * taught.classes) + base.temperature * np.asarray(moves)
        own = found.model_copy(update={"offsets": tuple(float(each) for each in offsets)}) if any(moves) else found
        kind = kind.model_copy(update={"calibration": own, "head": taught.classes if head.change is not None else 0})
        told = _network(_with_kind(self.champion.spec, kind.model_copy(update={"intercept": ALWAYS})), network)
        if head.change is not None:
            harmoniser = harmoniser_of(told)
            assert harmoniser is not None
            set_head(harmoniser, len(harmoniser.spec.kinds) - 1, heat * head.change)
        record = {"last_layer": head.penalty, "moved": [round(each, 4) for each in moves]}
        return _Way(kind, told.to(self.device), unseen, record)

    def _bar(self, separation: Separation, way: _Way, present: StudyLogits) -> tuple[float, dict[str, dict[str, float]]]:
        """The log odds from which an image counts as new: least loss on new cases, known images keep their answers.

        What known images lose of their answers bounds from above what their classes can lose, and needs no label: it is judged
        on more images than have been held out. Raises _NothingToDo where the loss is no less than the champion's.
        """
        base, found = self.champion.spec.calibration, separation.discriminant
        looks = found.scores(self._looks(_images(self.taught)))
        own = _corrected(way.taught, way.kind.calibration)
        doubtful = np.flatnonzero(separation.known > BARS[0])
        changed = self._changed([self.known[place] for place in doubtful], way)
        tried: dict[str, dict[str, float]] = {}
        costs: dict[float, float] = {}
        for bar in BARS:
            new = _read(present, own, looks > bar)
            loss = balanced_loss(new.probabilities(base), new.labels)
            share = float((changed & (separation.known[doubtful] > bar)).sum()) / len(self.known)
            costs[bar] = loss + PRICE * max(0.0, share - TOLERANCE)
            tried[f"{bar:g}"] = {"new_loss": round(loss, 5), "known_answers_changed": round(share, 5)}
        best = min(costs, key=lambda bar: (costs[bar], bar))
        if tried[f"{best:g}"]["new_loss"] >= balanced_loss(present.probabilities(base), present.labels):
            raise _NothingToDo("the new images cannot be told from the old ones well enough to be read in another way")
        return best, tried

    def _changed(self, images: Sequence[torch.Tensor], way: _Way) -> Flags:
        """Whether known images would be answered otherwise if they were taken for new ones."""
        if not images:
            return np.zeros(0, dtype=np.bool_)
        names = tuple(str(place) for place in range(len(images)))
        few = TensorSet(tuple(image[None] for image in images), (0,) * len(images), names, names)
        base = self.champion.spec.calibration
        before = study_logits(self.champion.module.to(self.device), few, self.device)
        after = study_logits(way.network, few, self.device)
        return np.asarray(before.probabilities(base).argmax(axis=1) != after.probabilities(base).argmax(axis=1))

    def _looks(self, images: Sequence[torch.Tensor]) -> Floats:
        parts = [look_of(torch.stack(list(part)) * self.std + self.mean) for part in _batches(images)]
        return np.asarray(torch.cat(parts).numpy())

    def _shades(self, images: Sequence[torch.Tensor]) -> Floats:
        """Shades [n, pixels] in [0, 1], of each image at most about `SHADES`."""
        flat = [image[0].flatten() for image in images]
        step = max(len(flat[0]) // SHADES, 1)
        return (torch.stack([each[::step] for each in flat]).double() * self.std + self.mean).clamp(0, 1).numpy()


def _changes(kind: ImageKind) -> bool:
    """Whether images of the kind pass the network otherwise than others."""
    return kind.statistics or kind.grey_levels is not None


def _read(present: StudyLogits, own: StudyLogits, new: Flags) -> StudyLogits:
    """Every image in its own way where `new` [images] holds, as before where not."""
    return replace(present, logits=np.where(new[:, None], own.logits, present.logits))


def _corrected(cases: StudyLogits, calibration: Calibration) -> StudyLogits:
    return replace(cases, logits=cases.logits / calibration.temperature + np.asarray(calibration.offsets or 0.0))


def _with_kind(spec: ModelSpec, kind: ImageKind) -> ModelSpec:
    kinds = spec.harmonisation.kinds if spec.harmonisation is not None else ()
    return spec.model_copy(update={"harmonisation": Harmonisation(form=FORM, kinds=(*kinds, kind))})


def _plain(spec: ModelSpec, module: nn.Module) -> nn.Module:
    """The same network without what it does by kinds."""
    network = network_of(spec.model_copy(update={"harmonisation": None}))
    network.load_state_dict({name: each for name, each in module.state_dict().items() if not name.startswith(f"{ATTRIBUTE}.")})
    return network.eval()


def _network(spec: ModelSpec, source: nn.Module) -> nn.Module:
    """The network of a specification that tells kinds, with the weights of `source` and what statistics it has of kinds."""
    network = _plain(spec, source)
    assert spec.harmonisation is not None
    harmoniser, former = harmonise(network, spec.harmonisation, spec.preprocessing), harmoniser_of(source)
    for name, own in harmoniser.state_dict().items():
        given = former.state_dict().get(name) if former is not None else None
        if given is not None:
            # Behind the kinds' statistics stand those of the known images, which change nothing.
            rows = len(given) - (not name.startswith("head_"))
            own[:rows] = given[:rows].to(own)
    return network.eval()


def _images(tensors: TensorSet) -> list[torch.Tensor]:
    return [image for study in tensors.studies for image in study]


def _studies(tensors: TensorSet) -> Integers:
    """The study that each image belongs to."""
    counts = np.asarray([len(study) for study in tensors.studies], dtype=np.int64)
    return np.repeat(np.arange(len(tensors)), counts)


def _patients(tensors: TensorSet) -> Integers:
    """The patient that each study belongs to, as a number."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(tensors.patients))}
    return np.asarray([numbers[patient] for patient in tensors.patients], dtype=np.int64)


def _groups(tensors: TensorSet) -> Integers:
    """The patient that each image belongs to, as a number."""
    return np.asarray(_patients(tensors)[_studies(tensors)])


def _layout(images: Sequence[torch.Tensor]) -> Floats:
    """Mean of the images at a coarse resolution."""
    planes = torch.stack([image[0] if image.ndim == 3 else image[0].mean(dim=0) for image in images])
    return nn.functional.adaptive_avg_pool2d(planes[:, None], 8).mean(dim=(0, 1)).flatten().double().numpy()


def _batches(images: Sequence[torch.Tensor], size: int = 64) -> list[Sequence[torch.Tensor]]:
    return [images[start : start + size] for start in range(0, len(images), size)]
