"""The import direction of the package: every arrow of the design, and no other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sam_blvit"
LAYERS = [
    {"config", "system", "__version__"},
    {"model", "data", "generator_options"},
    {"checkpoint", "exported", "predictor", "draw", "cost"},
    {"automatic_mask_generator"},  # the root imports this and below
    {"train", "evaluate", "benchmark"},
    {"cascade"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""From the lowest up. Units of one layer of packages never import each other."""
MAY_IMPORT_EACH_OTHER = [{"checkpoint", "exported"}, {"config", "system"}]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("sam_blvit.")}


def layer_of(unit: str) -> int:
    return next(i for i, units in enumerate(LAYERS) if unit in units)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_from_lower_layers(path: Path) -> None:
    unit = unit_of(path)
    for other in imported_units(path) - {unit}:
        together = any({unit, other} <= units for units in MAY_IMPORT_EACH_OTHER)
        assert layer_of(other) < layer_of(unit) or together, f"{unit} imports {other}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "config").glob("*.py")), ids=lambda p: p.name)
def test_configs_need_the_standard_library_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names or name.startswith("sam_blvit.config."), name


@pytest.mark.parametrize("module", ["yaml", "tyro", "pycocotools", "lvis", "matplotlib"])
def test_importing_the_package_does_not_import(module: str) -> None:
    code = f"import sys, sam_blvit; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("folder", ["tools", "eval"])
def test_command_files_hold_a_docstring_imports_and_one_call(folder: str) -> None:
    files = list((PACKAGE.parent / folder).glob("*.py"))
    assert files
    for path in files:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree)
        kinds = [type(node) for node in tree.body[1:]]
        assert kinds[-1] is ast.If
        assert set(kinds[:-1]) == {ast.ImportFrom}
