"""All benchmarks as one tool.

python -m bench                       which there are, and what each measures
python -m bench NAME [options]        runs one; `python -m bench NAME --help` has its options
python -m bench compare OLD NEW       two files of rows (`--out`), figure by figure; exit 1 if one became worse
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from bench.support.compare import compare

FOLDERS = ("pipeline", "planning", "publish", "off_policy", "chaos", "selftest", "peers")
ROOT = Path(__file__).parent


def benchmarks() -> dict[str, Path]:
    """Name → the script that measures it."""
    scripts = (script for folder in FOLDERS for script in sorted((ROOT / folder).glob("*.py")))
    return {
        script.stem: script
        for script in scripts
        if "def main(" in script.read_text() and not script.stem.startswith("trl_")
    }


def purpose(script: Path) -> str:
    """The first line of its docstring."""
    return (ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n")[0]


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        for name, script in benchmarks().items():
            print(f"{name:<20}{purpose(script)}")
        return 0
    name, *options = arguments
    if name == "compare":
        return compare(options)
    if name not in benchmarks():
        print(f"error: no benchmark is called {name!r}; there are {', '.join(benchmarks())}", file=sys.stderr)
        return 2
    script = benchmarks()[name]
    sys.argv = [str(script), *options]
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
