"""Which of a series' ordered images a model looks at, by the rule of its specification."""

import numpy as np

from models.findings import Finding
from models.spec import PreprocessingSpec


def choose(count: int, spec: PreprocessingSpec) -> tuple[list[int], tuple[Finding, ...]]:
    """Indices of the images to look at among `count` ordered ones, and findings. Choosing again changes nothing."""
    if spec.spatial_dims == 3:
        few = count < spec.size[0] // 4
        return list(range(count)), (Finding("few_slices", f"{count} of {spec.size[0]}"),) if few else ()
    if spec.slices == "single":
        return [0], (Finding("extra_images_ignored", f"{count - 1} images"),) if count > 1 else ()
    if spec.slices == "middle":
        return [count // 2], ()
    wanted = min(spec.max_images, count)
    # Centres of `wanted` equal parts: never the outermost slices of a volume, which mostly show air.
    places = (np.arange(wanted) + 0.5) * count / wanted
    return [int(place) for place in places], ()
