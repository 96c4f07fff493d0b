"""Sentences about a decline, one place for summaries, reports and agents. Pure.

The readers look at images all day and not at statistics.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from schemas.vocabulary import Diagnosis, Remedy

CAUSES: Final[dict[str, str]] = {
    Diagnosis.PREVALENCE: "another mix of diagnoses among the patients",
    Diagnosis.COVARIATE: "new images (scanner, protocol or patients)",
    Diagnosis.CONCEPT: "another meaning of the same images (criteria of reporting, or the source of the labels)",
    Diagnosis.PIPELINE: "a fault in the image feed (window, orientation, wrong series)",
}
"""Diagnosis to what brought the decline about."""
METRICS: Final[dict[str, str]] = {
    "accuracy": "accuracy",
    "macro_recall": "recall, mean of the classes",
    "macro_f1": "F1, mean of the classes",
    "auroc": "AUROC, mean of the classes",
}
TO_DO: Final[dict[Remedy, str]] = {
    Remedy.FIX_FEED: "fix the image feed",
    Remedy.RETHRESHOLD: "set the decision thresholds anew",
    Remedy.RECALIBRATE: "recalibrate the probabilities for the new mix of patients",
    Remedy.HARMONISE: "harmonise the new images with those the model was made with",
    Remedy.ADAPT_STATISTICS: "adapt the network to the look of the new images",
    Remedy.HEAD_ONLY: "fine-tune the last layer only",
    Remedy.PARTIAL: "fine-tune the rear part of the network",
    Remedy.PARAMETER_EFFICIENT: "fine-tune small added layers",
    Remedy.GRADUAL: "fine-tune the whole network, one layer after the other",
    Remedy.FULL: "fine-tune the whole network",
}
"""A remedy as what somebody has to do."""
DONE: Final[dict[Remedy, str]] = {
    Remedy.NONE: "no change",
    Remedy.FIX_FEED: "repair of the image feed",
    Remedy.RETHRESHOLD: "new decision thresholds",
    Remedy.RECALIBRATE: "recalibration of the probabilities",
    Remedy.HARMONISE: "harmonisation of the new images with those the model was made with",
    Remedy.ADAPT_STATISTICS: "adaptation of the network's statistics to the new images",
    Remedy.HEAD_ONLY: "fine-tuning of the last layer",
    Remedy.PARTIAL: "fine-tuning of the rear part of the network",
    Remedy.PARAMETER_EFFICIENT: "fine-tuning of small added layers",
    Remedy.GRADUAL: "fine-tuning of the whole network, one layer after the other",
    Remedy.FULL: "fine-tuning of the whole network",
}
"""A remedy as what has been done."""
_GROUPS: Final[dict[str, str]] = {
    "Site": "sent by {}",
    "Manufacturer": "scanned on a {}",
    "ManufacturerModelName": "scanned on a {}",
    "StationName": "scanned at {}",
    "BodyPartExamined": "with images of {}",
    "ViewPosition": "with view {}",
    "ScanningSequence": "with sequence {}",
    "ConvolutionKernel": "with kernel {}",
    "AgeBand": "aged {}",
}
_FACETS: Final[dict[str, str]] = {
    "StationName": "station",
    "ManufacturerModelName": "model",
    "BodyPartExamined": "body part",
    "ViewPosition": "view",
    "ScanningSequence": "sequence",
    "ConvolutionKernel": "kernel",
    "SliceThickness": "slices",
    "KVP": "tube voltage",
    "MagneticFieldStrength": "field strength",
    "PhotometricInterpretation": "grey scale",
    "PatientSex": "sex",
    "AgeBand": "age",
}
"""Facets whose keyword reads badly; the others' is taken apart."""
_SEXES: Final[dict[str, str]] = {"F": "who are female", "M": "who are male", "O": "of other sex"}
_ACRONYMS: Final = {"auroc": "AUROC", "f1": "F1", "ece": "calibration error"}
_KEYWORD: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def metric(name: str) -> str:
    """`recall:glioma` to `recall of glioma`; a class keeps its name as it is."""
    kind, _, owner = name.partition(":")
    words = METRICS.get(kind) or " ".join(_ACRONYMS.get(word, word) for word in kind.split("_"))
    return f"{_ACRONYMS.get(kind, kind.replace('_', ' '))} of {owner}" if owner else words


def group(facet: str, value: str) -> str:
    """`StationName`, `CT2` to `scanned at CT2`: what follows "patients"."""
    return _SEXES.get(value, value) if facet == "PatientSex" else _GROUPS.get(facet, f"with {facet} {{}}").format(value)


def facet(name: str) -> str:
    """What a facet is called in a sentence: `StationName` to `station`, `EchoTime` to `echo time`."""
    return _FACETS.get(name) or _KEYWORD.sub(" ", name).lower()


def date(text: str) -> str:
    """An ISO date or time as people write a day; other text as it is."""
    try:
        day = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{day.day} {day:%B %Y}"


def decline(model: str, evidence: Mapping[str, Any], summary: str = "") -> str:
    """One sentence: since when the model is worse, in what, and by how much. The summary's first where the evidence is thin."""
    label, now, before = evidence.get("class"), _of_hundred(evidence.get("recall")), _of_hundred(evidence.get("recall_before"))
    if not label or now is None or before is None:
        return _first(summary) or f"{model} has got worse."
    since = f"Since {date(str(evidence['since']))}" if evidence.get("since") else "Lately"
    where = "in all classes together, most clearly in" if evidence.get("scope") == "all classes" else "in"
    return f"{since} {model} has been worse {where} {label}: of 100 such patients it finds {now}, before {before}."


def small(evidence: Mapping[str, Any]) -> bool:
    """Whether the fall that an evaluation found is likelier than not smaller than 3 points."""
    probability = evidence.get("probability")
    return isinstance(probability, int | float) and probability <= 0.5


def cause(diagnosis: str, evidence: Mapping[str, Any]) -> str:
    """What brought the decline about, with the facet that changed where the evidence names one; empty when it is not known."""
    known = CAUSES.get(diagnosis, "")
    changed = _changed(str(evidence.get("root_cause") or ""))
    return f"{known}: {changed}" if known and changed else known


def likely(diagnosis: str, evidence: Mapping[str, Any]) -> str:
    """The beginning of a sentence on the cause."""
    known = cause(diagnosis, evidence)
    return f"The likely cause is {known}" if known else "The cause is not known yet"


def _changed(root_cause: str) -> str:
    """`since 14 March, station CT2; recall of …` to `station CT2`; of a line with a DICOM keyword in front that one as words."""
    parts = [part.strip() for part in root_cause.partition(";")[0].split(",")]
    keyword, space, value = ", ".join(part for part in parts if part and not part.startswith("since ")).partition(" ")
    return facet(keyword) + space + value


def _of_hundred(value: Any) -> int | None:
    try:
        return round(100 * float(value))
    except (TypeError, ValueError):
        return None


def _first(summary: str) -> str:
    head, stop, _ = summary.partition(". ")
    return f"{head.rstrip('.')}." if head.strip(". ") or stop else ""
