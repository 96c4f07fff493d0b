"""Images of a run: the chosen cases from the archive, and the old cases from the champion's development manifest."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from sqlmodel import Session

from models.bundle import LoadedModel, load_bundle
from models.data import LabelledStudy, TensorSet, issuers_of, read_manifest, seen_of
from models.errors import BrokenBundle, InvalidDataset, ModelError
from models.preprocessing import Prepared, load_study
from models.spec import ModelSpec, SelectionRule
from schemas.tables import ModelVersion
from services.remediation import repository
from services.remediation.plan import LabelledCase
from services.runtime.archive import study_files
from services.runtime.errors import InvalidInput
from services.runtime.identity import Pseudonyms

READERS = 2


def development(dataset: str, classes: Sequence[str]) -> list[LabelledStudy]:
    """All studies of the development manifest. InvalidInput when the version names none: forgetting could not be measured."""
    if not dataset:
        raise InvalidInput("the champion names no development data, so nobody could say what a challenger forgets")
    return read_manifest(Path(dataset), classes)


def development_patients(studies: Sequence[LabelledStudy], pseudonyms: Pseudonyms) -> set[str]:
    """Pseudonyms of the manifest's patients, with the issuer of their ID and without: they may neither tune nor judge."""
    issuers = issuers_of(studies)
    return {pseudonyms.patient(study.patient, issuer) for study in studies for issuer in {issuers[study.key], ""}}


def used_patients(session: Session, model: str, studies: Sequence[LabelledStudy], pseudonyms: Pseudonyms) -> set[str]:
    """Who may neither tune nor judge: patients of these development data, of what any version learned from, of any baseline."""
    known = repository.taught_patients(session, model) | repository.baseline_patients(session, model)
    return development_patients(studies, pseudonyms) | known


def version(models: Path, row: ModelVersion) -> LoadedModel:
    """A registered version. Raises BrokenBundle where its bundle is not the one that was registered."""
    loaded = load_bundle(models / row.bundle)
    if loaded.info.sha256 != row.sha256:
        raise BrokenBundle(f"the weights of {row.model} version {row.version} are not those that were registered")
    return loaded


def archived(session: Session, archive: Path, cases: Sequence[LabelledCase]) -> list[LabelledStudy]:
    """The cases with their files; InvalidInput when the archive has lost one."""
    return [
        LabelledStudy(case.study_key, tuple(study_files(session, archive, case.study_key)), case.truth, case.patient_key)
        for case in cases
    ]


def load(
    studies: Sequence[LabelledStudy], spec: ModelSpec, rule: SelectionRule | None, check: Callable[[], None] = lambda: None
) -> TensorSet:
    """Decode and prepare studies exactly as serving does. `check` may raise to end early.

    InvalidDataset names a study that cannot be read or whose label is no class of the model.
    """
    for study in studies:
        if study.label not in spec.classes:
            raise InvalidDataset(f"{study.title}: its label is no class of {spec.name}; these are {', '.join(spec.classes)}")

    def read(study: LabelledStudy) -> Prepared:
        check()
        try:
            return load_study(study.paths, spec.preprocessing, rule)
        except ModelError as error:
            raise InvalidDataset(f"{study.title}: {error.reason}") from error

    with ThreadPoolExecutor(READERS) as pool:
        prepared = list(pool.map(read, studies))
    labels = tuple(spec.classes.index(study.label) for study in studies)
    patients, keys = tuple(study.patient for study in studies), tuple(study.key for study in studies)
    findings = {key: each.codes for key, each in zip(keys, prepared, strict=True) if each.findings}
    return TensorSet(tuple(each.tensor for each in prepared), labels, patients, keys, findings, seen_of(keys, prepared))


def without_labels(studies: Sequence[LabelledStudy], spec: ModelSpec) -> list[LabelledStudy]:
    """The studies for uses that read no label: all have that of the first class."""
    return [replace(study, label=spec.classes[0]) for study in studies]


def combine(first: TensorSet, second: TensorSet) -> TensorSet:
    """Both sets, one after the other."""
    return TensorSet(
        first.studies + second.studies,
        first.labels + second.labels,
        first.patients + second.patients,
        first.keys + second.keys,
        {**first.findings, **second.findings},
        {**first.seen, **second.seen},
    )


def split_of(studies: Sequence[LabelledStudy], *names: str) -> list[LabelledStudy]:
    """The manifest's studies in any of the named splits."""
    return [study for study in studies if study.split in names]


def bounded(studies: Sequence[LabelledStudy], most: int, seed: int) -> list[LabelledStudy]:
    """At most `most` studies, the classes as even as their numbers allow, drawn by `seed`; order of the input is kept."""
    if len(studies) <= most:
        return list(studies)
    order = np.random.default_rng(seed).permutation(len(studies))
    ranks: dict[str, int] = {}
    ranked = []
    for place in order:
        label = studies[place].label
        ranks[label] = ranks.get(label, 0) + 1
        ranked.append((ranks[label], int(place)))
    return [studies[place] for _, place in sorted(sorted(ranked)[:most], key=lambda pair: pair[1])]
