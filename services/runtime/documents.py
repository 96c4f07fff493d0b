"""Documents that people write for the service, in YAML or JSON."""

import json
from pathlib import Path
from typing import Any

import yaml

from services.runtime.errors import InvalidInput


def read_fields(path: Path, title: str) -> tuple[dict[str, Any], bytes]:
    """The fields in a file, none where it holds something else, and its bytes. Raises InvalidInput, with the file's `title`."""
    try:
        content = path.read_bytes()
        document = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidInput(f"{title} cannot be read ({type(error).__name__})") from error
    return document if isinstance(document, dict) else {}, content
