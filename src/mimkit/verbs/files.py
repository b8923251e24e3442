"""Small files that verbs write where the user says."""

import json
from pathlib import Path
from typing import Any

from mimkit.errors import UserError


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON. Raises UserError when that cannot be."""
    try:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another place.") from error
