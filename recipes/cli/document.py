"""One JSON document on standard output: what `--json` means for every command."""

import json
from typing import Any


def print_json(value: Any) -> None:
    """Print `value`; what JSON does not know becomes text. In ASCII: any terminal and any locale can take it."""
    print(json.dumps(value, indent=2, default=str))
