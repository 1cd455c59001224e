"""Hold each floor of src/virtfn to a budget of code lines: no blank lines, comments or docstrings.

A budget is raised in a commit of its own that says why.
"""

from __future__ import annotations

import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "virtfn"

BUDGETS = {
    "hw": 3000,
    "kernels": 8000,
    "machine": 2100,
    "devices": 5000,
    "drivers": 2850,
    "vmm": 7400,
    "iovm": 2600,
    "iomodels": 2320,
    "sim": 300,
    "api": 9850,
    "cli": 2300,
    "web": 560,
    "pytest": 350,
    "cards.py": 120,
    "private.py": 230,
}

_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Count the lines of `source` that hold code; a string that is a statement by itself is a docstring."""
    lines: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            statement.append(token)
        elif token.type == tokenize.NEWLINE:
            if any(part.type != tokenize.STRING for part in statement):
                for part in statement:
                    lines.update(range(part.start[0], part.end[0] + 1))
            statement = []
    return len(lines)


def count_floors(root: Path) -> dict[str, int]:
    """Count code lines of each package and module directly under `root`."""
    floors = {entry.name: [entry] if entry.is_file() else list(entry.rglob("*.py")) for entry in sorted(root.iterdir())}
    return {
        name: sum(code_lines(path.read_text(encoding="utf-8")) for path in paths)
        for name, paths in floors.items()
        if any(path.suffix == ".py" for path in paths) and name != "__init__.py"
    }


def report(floors: dict[str, int], budgets: dict[str, int]) -> tuple[list[str], list[str]]:
    """Compare; return the lines to show, and what is wrong."""
    lines = [f"{name:<10} {used:>6} of {budgets.get(name, 0):>6}" for name, used in floors.items()]
    lines.append(f"{'all':<10} {sum(floors.values()):>6} of {sum(budgets.values()):>6}")
    wrong = []
    for name, used in floors.items():
        if name not in budgets:
            wrong.append(f"{name} has no budget; give it one in tools/line_budget.py")
        elif used > budgets[name]:
            wrong.append(f"{name} has {used} lines of code, {used - budgets[name]} over its budget of {budgets[name]}")
    return lines, wrong


def main() -> int:
    lines, wrong = report(count_floors(ROOT), BUDGETS)
    print("\n".join(lines))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
