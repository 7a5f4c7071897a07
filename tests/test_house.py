"""The plan of the house: imports point down, nothing heavy is imported before it is needed, names stay."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simbandit

PACKAGE = Path(simbandit.__file__).parent
ROOT = PACKAGE.parent

FLOORS = (
    ("types", "compiled", "draws", "solvers", "objective", "equilibrium"),
    ("fits",),
    ("policies", "oracles", "worlds", "zero_sum", "trees"),
    ("estimators", "least_squares", "design", "off_policy", "data"),
    ("losses", "low_rank", "preferences"),
    ("hypotheses",),
    ("algorithms",),
    ("snapshots", "game_metrics", "cycles"),
    ("simulate", "metrics", "results", "output"),
    ("guarantees",),
    ("study", "cells", "executors", "store"),
    ("report", "plotting", "plotting_games", "gallery"),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert room(path) in FLOOR, f"{room(path)} has no floor"
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in ("studies", "llm_bridge", "tests"), f"{path} imports {name}"
        if parts[0] == "simbandit" and len(parts) > 1 and parts[1] in FLOOR:
            assert FLOOR[parts[1]] <= FLOOR[room(path)], f"{path} imports {name}, which is above it"


def test_figures_never_know_an_algorithm():
    for name in ("plotting", "plotting_games", "gallery"):
        known = {part for module in imported(PACKAGE / f"{name}.py") for part in module.split(".")}
        assert not known & {"algorithms", "simulate", "study", "cells", "executors", "policies"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_house_rules_hold(path):
    text = path.read_text()
    for phrase in ("except Exception", "except:", "TO" + "DO", "FIX" + "ME", "type: ignore", "pragma", "manual_seed"):
        assert phrase not in text
    for line in text.splitlines():
        assert "np.random.seed" not in line
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "numpy", "pandas", "transformers", "studies", "matplotlib"}
    assert python(f"import sys, simbandit; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_help_does_not_import_torch():
    show = "try: cli.main(['--help'])\nexcept SystemExit: pass"
    code = f"import sys; from simbandit import cli\n{show}\nprint('torch' in sys.modules)"
    assert python(code).endswith("False")


def test_everything_works_without_transformers():
    rooms = sorted({room(path) for path in FILES} - {"__main__"})
    code = "import sys, importlib; sys.modules['transformers'] = None\n" + "\n".join(
        f"importlib.import_module('simbandit.{name}')" for name in rooms
    )
    python(code + "\nprint('transformers' in sys.modules and sys.modules['transformers'] is None)")


@pytest.mark.parametrize(
    "first",
    [
        "import simbandit.simulate",
        "import simbandit.metrics, simbandit.study",
        "from simbandit import simulate",
    ],
)
def test_simulate_is_the_function_whatever_was_imported_first(first):
    code = f"{first}\nimport simbandit, sys\nassert callable(simbandit.simulate), simbandit.simulate"
    code += "\nassert simbandit.simulate is sys.modules['simbandit.simulate'].simulate"
    python(code)


def test_the_names_of_the_contract():
    for name in simbandit.__all__:
        assert getattr(simbandit, name) is not None
        assert name in dir(simbandit)
    assert simbandit.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = simbandit.nothing


def test_the_version_is_written_once_and_the_same_everywhere():
    assert f'version = "{simbandit.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {simbandit.__version__}" in (ROOT / "CITATION.cff").read_text()
