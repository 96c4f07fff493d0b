"""Which model versions score which study, and from which files. Pure but for listing the archive's folders."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.spec import PreprocessingSpec, SelectionRule
from schemas.events import StudyReceived
from services.inference.bundles import ScoringModel
from services.runtime.archive import series_files
from services.runtime.messages import Received


@dataclass(frozen=True)
class View:
    """A way of looking at a study. Versions that share one share the decoding."""

    spec: PreprocessingSpec
    rule: SelectionRule


@dataclass(frozen=True)
class Task:
    """One study to be decoded once for all `models`, which share `view`."""

    event: Received[StudyReceived]
    view: View
    paths: tuple[Path, ...]
    models: tuple[ScoringModel, ...]


Views = Mapping[View, tuple[ScoringModel, ...]]


def views_of(models: Iterable[ScoringModel]) -> Views:
    """Versions by the way they look at a study."""
    views: dict[View, tuple[ScoringModel, ...]] = {}
    for model in models:
        view = View(model.predictor.spec.preprocessing, model.rule)
        views[view] = (*views.get(view, ()), model)
    return views


def tasks_of(event: Received[StudyReceived], views: Views, archive: Path) -> list[Task]:
    """Tasks of a study, none when its modalities are no model's. Raises InvalidInput when its files are not there.

    The event's modalities decide first, so that no file is opened in vain; what a rule says on body part and description
    is checked against the files' own headers when they are read.
    """
    tasks = []
    for view, sharing in views.items():
        asked = tuple(model for model in sharing if not event.data.models or model.row.model in event.data.models)
        paths = _files(event.data, view.rule, archive) if asked else ()
        if paths:
            tasks.append(Task(event, view, paths, asked))
    return tasks


def _files(study: StudyReceived, rule: SelectionRule, archive: Path) -> tuple[Path, ...]:
    by_modality = SelectionRule(modalities=rule.modalities)
    wanted: Sequence[str] = [series.path for series in study.series if by_modality.matches(series.modality)]
    return tuple(path for folder in wanted for path in series_files(archive, folder))
