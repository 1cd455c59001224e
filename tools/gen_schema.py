"""Write the JSON Schema of lab files, for the documents and for the package; `--check` tells whether both are fresh."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from virtfn.api.lab import schema

ROOT = Path(__file__).resolve().parent.parent
TARGETS = [ROOT / "docs" / "reference" / "lab.schema.json", ROOT / "src" / "virtfn" / "api" / "lab.schema.json"]


def main(arguments: list[str]) -> int:
    text = json.dumps(schema(), indent=2) + "\n"
    stale = [path for path in TARGETS if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale; run tools/gen_schema.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
