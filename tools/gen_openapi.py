"""Write the OpenAPI document of `virtfn up --http`; `--check` tells whether it is fresh."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from virtfn.web.app import make_app

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "reference" / "openapi.json"


def main(arguments: list[str]) -> int:
    document = make_app(lambda method, params: None, "", 0).openapi()
    text = json.dumps(document, indent=1) + "\n"
    fresh = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
    if "--check" in arguments:
        if not fresh:
            print(f"{TARGET.relative_to(ROOT)} is stale; run tools/gen_openapi.py", file=sys.stderr)
        return 0 if fresh else 1
    if not fresh:
        TARGET.write_text(text, encoding="utf-8")
        print(f"wrote {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
