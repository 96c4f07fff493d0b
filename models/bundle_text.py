"""The documents of a bundle: MONAI metadata, inference configuration and model card, as pure functions of the specification."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from models.spec import Calibration, ModelSpec

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def metadata(spec: ModelSpec, training: Mapping[str, Any], versions: Mapping[str, str], now: datetime) -> dict[str, Any]:
    """The fields of MONAI's bundle metadata schema; `reclaim` holds the exact specification and the training record."""
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"written {now.isoformat(timespec='seconds')}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": {"torchvision": versions["torchvision"]},
        "supported_apps": {},
        "name": spec.name,
        "task": spec.task,
        "description": spec.description or f"Classifier of {spec.task}: {', '.join(spec.classes)}",
        "authors": spec.authors,
        "copyright": "",
        "intended_use": spec.intended_use,
        "network_data_format": {"inputs": {"image": _input_format(spec)}, "outputs": {"pred": _output_format(spec)}},
        "reclaim": {"model": spec.model_dump(mode="json"), "training": dict(training)},
    }


def inference_config(spec: ModelSpec) -> dict[str, Any]:
    """A configuration that monai.bundle.ConfigParser parses; `network_def` builds the network without weights."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "models.networks.build_network", **_network(spec)}
        if spec.harmonisation is None
        else {
            "_target_": "models.harmonisation.build_harmonised",
            "harmonisation": spec.harmonisation.model_dump(mode="json"),
            "mean": spec.preprocessing.mean,
            "std": spec.preprocessing.std,
            **_network(spec),
        },
        "preprocessing": spec.preprocessing.model_dump(mode="json"),
        "classes": list(spec.classes),
    }


def _network(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.network,
        "classes": len(spec.classes),
        "channels": spec.preprocessing.channels,
        "spatial_dims": spec.preprocessing.spatial_dims,
        **spec.options,
    }


def card(spec: ModelSpec, training: Mapping[str, Any]) -> str:
    """The model card in Markdown."""
    return (
        f"# {spec.name}\n\n{spec.description or 'Image classifier.'}\n\n"
        f"- Task: {spec.task}\n- Classes: {', '.join(spec.classes)}\n- Network: {spec.network}\n"
        f"- Intended use: {spec.intended_use}\n\n"
        f"{_kinds(spec)}## Preprocessing\n\n```json\n{spec.preprocessing.model_dump_json(indent=2)}\n```\n\n"
        f"## Training\n\n```json\n{json.dumps(dict(training), indent=2, sort_keys=True)}\n```\n"
    )


def _kinds(spec: ModelSpec) -> str:
    if spec.harmonisation is None:
        return ""
    ways = [
        " and ".join(
            word
            for word, has in (
                ("other grey levels", kind.grey_levels is not None),
                ("other feature statistics", kind.statistics),
                ("a change of the last layer", kind.head > 0),
                ("a correction of the logits", kind.calibration != Calibration()),
            )
            if has
        )
        for kind in spec.harmonisation.kinds
    ]
    listed = "".join(f"- Kind {number}: {way}\n" for number, way in enumerate(ways, start=1))
    return f"## Images of another look\n\nTold by the image alone, and read in a way of their own:\n\n{listed}\n"


def _input_format(spec: ModelSpec) -> dict[str, Any]:
    preprocessing = spec.preprocessing
    low, high = ((bound - preprocessing.mean) / preprocessing.std for bound in (0.0, 1.0))
    return {
        "type": "image",
        "format": "magnitude",
        "modality": spec.modality or "any",
        "num_channels": preprocessing.channels,
        "spatial_shape": list(preprocessing.size),
        "dtype": "float32",
        "value_range": [low, high],
        "is_patch_data": False,
        "channel_def": {str(index): "image" for index in range(preprocessing.channels)},
    }


def _output_format(spec: ModelSpec) -> dict[str, Any]:
    return {
        "type": "probabilities",
        "format": "classification",
        "num_channels": len(spec.classes),
        "spatial_shape": [1],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(index): name for index, name in enumerate(spec.classes)},
    }
