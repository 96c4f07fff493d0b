"""Entering a finished bundle into the registry: verified, baselined on its own test data, copied under the models folder."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.bundle import load_bundle
from models.data import LabelledStudy, issuers_of, load_tensors, read_manifest
from models.predictor import Predictor
from models.probes import probed
from models.scoring import ScoredCase, score
from models.signature import Seen
from models.spec import ModelSpec, SelectionRule
from schemas.drift import ReferenceSignature
from schemas.tables import BaselineCase, ModelVersion, RegisteredModel, TrainingPatient
from schemas.vocabulary import VersionState
from services.runtime import registry
from services.runtime.chance import Standing, standing
from services.runtime.change_plans import plan_of, require_owner_versions
from services.runtime.errors import InvalidInput
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context
from services.runtime.signatures import fault_rows, reference_rows, replace_reference
from services.runtime.transaction import Transaction

TEST_SPLIT = "test"
Accept = Callable[[Standing], bool]
"""Whether a version whose baseline is at chance level may serve all the same; asked before it does."""


def refuse(_standing: Standing) -> bool:
    """Nobody vouches for it: it stays a candidate."""
    return False


def register_bundle(
    context: Context,
    bundle: Path,
    dataset: Path,
    *,
    actor: str,
    selection: SelectionRule | None = None,
    challenger: bool = False,
    on_study: Callable[[int], None] | None = None,
    accept: Accept = refuse,
    parent: int | None = None,
) -> ModelVersion:
    """Enter a bundle as the next version of its model and return the row. Where none serves it becomes the champion.

    `dataset` is the manifest of the development data; its split `test` becomes the baseline. A version whose baseline is at
    chance level serves only when `accept` says so (decision 0009). `parent` is the version it was made from. Raises
    InvalidInput for a data set without a test split, BrokenBundle and InvalidDataset for what they say.
    """
    loaded = load_bundle(bundle)
    spec = loaded.spec
    require_leave_to_begin(context, spec.name)
    developed = read_manifest(dataset, spec.classes)
    studies = _test_studies(developed, dataset.name)
    tensors = load_tensors(studies, spec.classes, spec.preprocessing, on_study=on_study)
    cases = score(Predictor(loaded, batch_size=context.settings.inference.batch_size), tensors)
    rule = selection or default_selection(spec)
    issuers = issuers_of(studies)
    probes = probed(studies, spec)
    serve = _vouched(context, spec, baseline_rows(spec.name, 0, cases, issuers, context.pseudonyms), accept)
    with context.database.transaction() as tx:
        registry.register_model(tx, spec.name, spec.task, list(spec.classes), rule.model_dump(mode="json"))
        registry.lock_model(tx.session, spec.name)
        row = _version_row(tx, context, bundle, dataset, spec, loaded.info.sha256)
        row.state, row.parent = VersionState.CHALLENGER if challenger else VersionState.CANDIDATE, parent
        baseline = baseline_rows(spec.name, row.version, cases, issuers, context.pseudonyms)
        registry.add_version(tx, row, baseline, actor=actor, serve=serve)
        replace_reference(tx, spec.name, row.version, _reference(spec.name, row.version, cases, probes))
        taught = training_patients(spec.name, [each for each in developed if each.split != TEST_SPLIT], context.pseudonyms)
        tx.insert_new(TrainingPatient, taught, returning="patient_key")
    return row


def _test_studies(developed: Sequence[LabelledStudy], manifest: str) -> list[LabelledStudy]:
    studies = [study for study in developed if study.split == TEST_SPLIT]
    if not studies:
        raise InvalidInput(f"{manifest} has no rows with split {TEST_SPLIT!r}: there is nothing to compare later cases with")
    return studies


def require_leave_to_begin(context: Context, name: str) -> None:
    """InvalidInput where the next version would serve in place of retired ones, and the change control plan covers no such version.

    Else retiring a model and training it anew would be a way around its plan.
    """
    with context.database.read() as session:
        owner = session.get(RegisteredModel, name)
        began_before = owner is not None and owner.champion is None and registry.has_been_retired(session, name)
    if began_before:
        require_owner_versions(plan_of(context.settings, name, context.clock.now().date()))


def _reference(
    model: str, version: int, cases: Sequence[ScoredCase], probes: Mapping[str, Mapping[str, Seen]]
) -> list[ReferenceSignature]:
    """What later images are compared with: the test set's, as they are and under each known fault of a feed."""
    keys = {case.case_key: baseline_key(case.case_key) for case in cases}
    rows = reference_rows(model, version, cases, [keys[case.case_key] for case in cases])
    for fault, seen in probes.items():
        rows += fault_rows(model, version, fault, {keys[key]: each for key, each in seen.items()})
    return rows


def baseline_key(case_key: str) -> str:
    """The key of a baseline case: a manifest's paths may name patients."""
    return hashlib.sha256(case_key.encode()).hexdigest()[:32]


def _vouched(context: Context, spec: ModelSpec, rows: Sequence[BaselineCase], accept: Accept) -> bool:
    """Whether the version may serve; `accept` is asked only where it would, and guessing is not ruled out."""
    found = standing(rows, spec.classes)
    with context.database.read() as session:
        known = session.get(RegisteredModel, spec.name)
        would_serve = known is None or known.champion is None
    return not would_serve or not found.at_chance or accept(found)


def default_selection(spec: ModelSpec) -> SelectionRule:
    """Studies of the modality and body part that the model was trained on."""
    return SelectionRule(
        modalities=(spec.modality,) if spec.modality else (), body_parts=(spec.body_part,) if spec.body_part else ()
    )


def baseline_rows(
    model: str, version: int, cases: Sequence[ScoredCase], issuers: Mapping[str, str], pseudonyms: Pseudonyms
) -> list[BaselineCase]:
    """Scored cases as a version's baseline; patients and paths become pseudonyms. `issuers` of patient IDs by case key."""
    return [
        BaselineCase(
            model=model,
            version=version,
            case_key=baseline_key(case.case_key),
            patient_key=pseudonyms.patient(case.patient, issuers.get(case.case_key, "")),
            truth=case.truth,
            predicted=case.predicted,
            probabilities=dict(case.probabilities),
            findings=list(case.findings),
        )
        for case in cases
    ]


def training_patients(model: str, studies: Sequence[LabelledStudy], pseudonyms: Pseudonyms) -> list[TrainingPatient]:
    """The patients of the studies that a model has learnt from, each once."""
    issuers = issuers_of(studies)
    keys = {pseudonyms.patient(study.patient, issuers.get(study.key, "")) for study in studies}
    return [TrainingPatient(model=model, patient_key=key) for key in sorted(keys)]


def _version_row(tx: Transaction, context: Context, bundle: Path, dataset: Path, spec: ModelSpec, sha256: str) -> ModelVersion:
    number = registry.next_version(tx.session, spec.name)
    return ModelVersion(
        model=spec.name,
        version=number,
        bundle=_take_in(context.settings.models_dir, bundle, spec.name, number, sha256),
        sha256=sha256,
        origin="registered",
        dataset=str(dataset.resolve()),
        classes=list(spec.classes),
        created_at=tx.clock.now(),
    )


def _take_in(root: Path, bundle: Path, name: str, number: int, sha256: str) -> str:
    """Copy a bundle under the models folder unless it lies there; returns its place relative to that folder."""
    resolved, root = bundle.resolve(), root.resolve()
    if resolved.is_relative_to(root):
        return str(resolved.relative_to(root))
    target = root / name / f"{number}-{sha256[:12]}"
    if not target.exists():
        draft = target.with_name(f".{target.name}")
        shutil.copytree(resolved, draft, dirs_exist_ok=True)
        draft.rename(target)
    return str(target.relative_to(root))
