"""The layout of the house: layers, ownership of the folders, paragraphs, banned calls."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = SETTINGS["tool"]["importlinter"]["contracts"][0]["layers"]
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))

BANNED_CALLS = {
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "eval",
    "exec",
}
REVIEWED = {ROOT / "detector/pickled.py": ["torch.load"]}
"""The one place where a released `.bin` is opened: `weights_only`, in a fenced child process."""
BANNED_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BANNED_KEYWORDS = {("shell", True), ("trust_remote_code", True)}
# A program carries the names of the libraries it drives; a module that shadows one hides it.
TAKEN = {"datasets", "accelerate", "types", "logging", "profile", "queue", "select", "random"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute chain, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def imported(tree: ast.AST) -> list[str]:
    """Every module that a file imports, at any depth of nesting."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return modules


def banned(tree: ast.AST) -> list[str]:
    """What a file does that strangers' data could turn into running code."""
    found = [name for name in imported(tree) if name.split(".")[0] in BANNED_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if dotted(node.func) in BANNED_CALLS:
            found.append(dotted(node.func))
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in BANNED_KEYWORDS:
                found.append(f"{keyword.arg}={value}")
    return found


def upward(tree: ast.AST, layer: str) -> list[str]:
    """Imports of a layer that stands above `layer`, lazy ones inside functions included."""
    above = set(LAYERS[: LAYERS.index(layer)])
    return [name for name in imported(tree) if name.split(".")[0] in above]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def test_layers_are_the_folders_that_are_packaged():
    include = SETTINGS["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix(".*") for name in include} == set(LAYERS)
    assert set(SETTINGS["tool"]["importlinter"]["root_packages"]) == set(LAYERS)
    assert set(SETTINGS["tool"]["pyright"]["include"]) == {*LAYERS, "benchmarks"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_against_the_layers(path):
    assert upward(parse(path), path.relative_to(ROOT).parts[0]) == []


def test_the_layer_check_sees_an_upward_import():
    tree = ast.parse("def late():\n    from treat.lora import add_lora\n    return add_lora\n")
    assert upward(tree, "detector") == ["treat.lora"]
    assert upward(tree, "diffdoctor") == []


def test_import_linter_agrees():
    """The whole graph at once, with indirect imports."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
    ]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("name", LAYERS)
def test_imported_folder_is_ours(name):
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"


@pytest.mark.parametrize("name", LAYERS)
def test_folder_says_what_goes_in_and_out(name):
    text = ast.get_docstring(parse(ROOT / name / "__init__.py")) or ""
    assert "In:" in text and "Out:" in text, f"{name}/__init__.py lacks its paragraph"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_has_a_docstring_and_no_banned_call(path):
    tree = parse(path)
    assert ast.get_docstring(tree), f"{path} does not say what comes in and what goes out"
    assert banned(tree) == REVIEWED.get(path, [])
    assert path not in REVIEWED or "weights_only=True" in path.read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "import pickle",
        "from pickle import loads",
        "import yaml\nyaml.load('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "eval('1')",
        "model.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_ban_sees_what_it_bans(source):
    assert banned(ast.parse(source)) != []


def test_no_module_shadows_a_library():
    names = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert not names & (TAKEN | set(sys.stdlib_module_names))


def test_lock_pins_every_dependency():
    lock = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line]
    assert all(line.count("==") == 1 and "//" not in line and "@" not in line for line in lock)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lock}
    project = SETTINGS["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {name.split(">")[0].split("[")[0].lower() for name in wanted}
    assert names <= pinned, names - pinned
