"""What a set of recordings says of itself, for tests that take their cases from it; nothing where there is no set.

`WORLDKV_REFERENCE` names the folder of another set of the same structure.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "reference"
REFERENCE = Path(os.environ.get("WORLDKV_REFERENCE", BESIDE_THE_REPOSITORY))


def manifest(case: str) -> dict[str, Any]:
    """Of one folder; {} where it is absent."""
    file = REFERENCE / case / "manifest.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content
