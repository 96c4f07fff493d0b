"""How a model's own reference images would look under each known change: made once, at registration."""

from collections.abc import Sequence
from typing import Final

from models.data import LabelledStudy
from models.errors import InvalidDataset, ModelError
from models.faults import known_changes
from models.preprocessing import load_changed
from models.signature import Seen
from models.spec import ModelSpec

IMAGES: Final = 160
VOLUMES: Final = 32
"""Most studies that are probed, spread evenly over the set: each is prepared once for every change."""


def probed(studies: Sequence[LabelledStudy], spec: ModelSpec) -> dict[str, dict[str, Seen]]:
    """Change to study key to what would be seen of the study. Raises InvalidDataset for a study that cannot be read."""
    most = IMAGES if spec.preprocessing.spatial_dims == 2 else VOLUMES
    step = max(-(-len(studies) // most), 1)
    changes = known_changes(spec.preprocessing, spec.modality)
    found: dict[str, dict[str, Seen]] = {name: {} for name in changes}
    for study in studies[::step]:
        try:
            changed = load_changed(study.paths, spec.preprocessing, changes)
        except ModelError as error:
            raise InvalidDataset(f"{study.title}: {error.reason}") from error
        for name, prepared in changed.items():
            if prepared.signature is not None:
                found[name][study.key] = Seen(prepared.signature, prepared.facets)
    return found
