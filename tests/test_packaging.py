"""The folders, the package list, the wheel, the pins and the Makefile say the same thing."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import budgetctl

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
MAPPED = PYPROJECT["tool"]["setuptools"]["package-dir"]
OPTIONAL = [
    "datasets",
    "fastapi",
    "math_verify",
    "matplotlib",
    "openai",
    "optuna",
    "peft",
    "reasoning_gym",
    "sglang",
    "trl",
    "uvicorn",
    "vllm",
    "xgrammar",
]
HEAVY = ["numpy", "rich", "scipy", "torch", "transformers", "typer"]


def import_name(path: Path) -> str:
    """The dotted name under which a Python file or folder of the repository is imported."""
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    names = {folder: name for name, folder in MAPPED.items()} | {"budgetctl": "budgetctl"}
    return ".".join([names[top], *rest]).removesuffix(".__init__")


def python_files() -> list[Path]:
    """Every Python file that belongs in the wheel."""
    return sorted(path for top in ["budgetctl", *MAPPED.values()] for path in (ROOT / top).rglob("*.py"))


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter outside the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(sys.executable).parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    assert sorted(PACKAGES) == sorted({import_name(path.parent) for path in python_files()})
    for package in {path.parent for path in python_files()}:
        assert (package / "__init__.py").is_file(), f"{package} has no __init__.py"


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_import_from_this_checkout(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    here = Path(module.__file__).resolve()
    if Path(budgetctl.__file__).resolve().parent == ROOT / "budgetctl":
        assert import_name(here) == name
    else:  # installed without -e: everything must come from that one copy
        assert here.parent == Path(budgetctl.__file__).resolve().parent.joinpath(*name.split(".")[1:])


def test_importing_budgetctl_imports_nothing_heavy() -> None:
    code = f"import sys, budgetctl; print([n for n in {HEAVY + OPTIONAL} if n in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_the_core_and_evals_import_without_the_optional_packages() -> None:
    names = [import_name(path) for path in python_files() if path.stem != "__main__"]
    engines = {f"budgetctl.integrations.{name}" for name in OPTIONAL}
    apart = ("budgetctl.training", "budgetctl.integrations.serve.")
    names = [name for name in names if not name.startswith(apart) and name not in engines]
    code = (
        "import importlib, sys\n"
        f"for name in {OPTIONAL}: sys.modules[name] = None  # to import it fails, to look for it finds nothing\n"
        f"for name in {names}:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: print(f'{name}: {error!r}')\n"
    )
    assert run_python(code) == ""


def test_the_version_is_the_same_everywhere() -> None:
    assert budgetctl.__version__ == PROJECT["version"] == importlib.metadata.version("budgetctl-llm")
    assert re.search(
        rf"^## \[{re.escape(PROJECT['version'])}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = pin.specifier
    asked = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    for text in asked:
        requirement = Requirement(text)
        specifier = pins.get(canonicalize_name(requirement.name))
        assert specifier is not None, f"{requirement.name} is not in constraints.txt"
        for pin in specifier:
            assert requirement.specifier.contains(pin.version), f"{pin} is outside {requirement}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel built from a copy of the sources, so that no old build folder leaks into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ["pyproject.toml", "LICENSE", "README.md"]:
        shutil.copy(ROOT / name, source / name)
    for top in ["budgetctl", *MAPPED.values()]:
        shutil.copytree(ROOT / top, source / top, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return zipfile.Path(built)


def test_the_wheel_holds_every_module_under_budgetctl_only(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    expected = set()
    for path in python_files():
        folder = import_name(path.parent).replace(".", "/")
        expected.add(f"{folder}/{path.name}")
    assert expected <= names
    assert "budgetctl/kernels/__init__.py" in names
    information = f"budgetctl_llm-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"budgetctl", information}
    assert f"{information}/licenses/LICENSE" in names


def test_the_wheel_holds_the_type_marker_and_the_reasoner_files(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    assert "budgetctl/py.typed" in names
    folder = ROOT / "budgetctl" / "reasoner"
    data = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"budgetctl/reasoner/{path.relative_to(folder).as_posix()}" for path in data} <= names


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("setup", "pip install"),
        ("demo", "budgetctl demo"),
        ("test", "pytest"),
        ("lint", "lint-imports"),
        ("reasoner", "budgetctl.training.reasoner.recipe"),
    ],
)
def test_make_targets_set_up_a_missing_environment_first(target: str, command: str, tmp_path: Path) -> None:
    for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        ["make", "--dry-run", target, "PYTHON=/some/python"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    created = done.stdout.index("/some/python -m venv")
    installed = done.stdout.index("pip install", created)
    assert "-c constraints.txt" in done.stdout[installed:]
    assert command in done.stdout[installed:]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_plain_make_lists_the_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ["setup", "demo", "test", "lint", "reasoner", "clean"]:
        assert re.search(rf"make {target} +\w", done.stdout), f"make does not list {target}"
