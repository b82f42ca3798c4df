"""The layout that the architecture promises: imports go one way, without cycles, and a public name stands in one module."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "imgrec"
# A module imports from its own layer and the ones before it; sub-packages of one layer do not import one another.
LAYERS = (
    ("errors", "locks", "files", "image_folders", "paths", "terminal", "html_page"),
    ("config",),
    ("distributed",),
    ("data", "models"),
    ("storage", "analysis"),
    ("scan",),
    ("inference",),
    ("training", "export"),
    ("sweeps",),
    ("report", "serving"),
    (
        "cli",
        "train",
        "tune",
        "evaluate",
        "compare",
        "soup",
        "predict",
        "explain",
        "extend",
        "lr_find",
        "benchmark",
        "pack",
        "check",
        "slurm",
        "serve",
        "verify",
    ),
)
# What takes long to import, so that an import inside a function keeps it out of the first second.
SLOW = {
    "torch",
    "torchvision",
    "torchmetrics",
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "rich",
    "matplotlib",
    "sklearn",
    "scipy",
    "optuna",
    "pyarrow",
    "starlette",
    "uvicorn",
    "onnx",
    "onnxruntime",
}
# What imgrec.analysis imports beside its own modules and the standard library, of which it opens nothing: arrays in, figures out.
PURE = {"numpy", "scipy", "torch", "xxhash"} | {
    f"imgrec.{name}" for name in ("errors", "config.schema", "data.batch", "data.counter_rng", "data.splits")
}
OPENING = {"os", "io", "pathlib", "shutil", "subprocess", "multiprocessing", "concurrent", "socket"}


class Import(NamedTuple):
    target: str  # module, or first part of a library's name
    place: Literal["top", "function", "type checking"]


def modules() -> dict[str, Path]:
    files = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in files.items()}


MODULES = modules()


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_imports(parsed(module), "top"))


def _imports(node: ast.AST, place: Literal["top", "function", "type checking"]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name if alias.name in MODULES else alias.name.partition(".")[0], place)
        elif isinstance(child, ast.ImportFrom):
            assert child.module is not None, "imports are absolute"
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                own = full if full in MODULES else child.module
                yield Import(own if own in MODULES else child.module.partition(".")[0], place)
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from _imports(child, "type checking")
        elif not isinstance(child, ast.expr):  # which holds no import, and most of the nodes
            yield from _imports(child, "function" if isinstance(child, ast.FunctionDef) else place)


def layer(module: str) -> int:
    """The place of a module in LAYERS; the package itself, whose names are lazy, is the last."""
    parts = module.split(".")
    return next((place for place, names in enumerate(LAYERS) if len(parts) > 1 and parts[1] in names), len(LAYERS))


@cache
def slow_imports(module: str) -> frozenset[str]:
    """The slow libraries that are imported with a module."""
    found: set[str] = set()
    seen, pending = {module}, [module]
    while pending:
        for target, place in imports(pending.pop()):
            if place != "top":
                continue
            if target in SLOW:
                found.add(target)
            elif target in MODULES and target not in seen:
                seen.add(target)
                pending.append(target)
    return frozenset(found)


def test_every_module_has_a_layer() -> None:
    top = {name.split(".")[1] for name in MODULES if "." in name}
    assert top == {name for names in LAYERS for name in names}


def test_imports_go_one_way() -> None:
    for module in MODULES.keys() - {"imgrec"}:
        own = module.split(".")[1]
        for target, _ in imports(module):
            if target in MODULES and target != "imgrec":
                other = target.split(".")[1]
                same = layer(target) == layer(module) and layer(module) in (0, len(LAYERS) - 1)
                assert other == own or layer(target) < layer(module) or same, f"{module} imports {target}"


def test_no_import_cycle_also_none_through_imports_inside_functions() -> None:
    graph = {name: {target for target, _ in imports(name) if target in MODULES and target != name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_inside_functions_keep_a_slow_library_out_of_the_first_second() -> None:
    for module in MODULES:
        here = slow_imports(module)
        for target, place in imports(module):
            if place == "function" and target in MODULES:
                assert slow_imports(target) - here, f"{target} imports nothing slow that {module} does not import anyway"


def test_analysis_reads_no_files() -> None:
    allowed = PURE | (sys.stdlib_module_names - OPENING)
    for module in MODULES:
        if module.startswith("imgrec.analysis."):
            assert {target for target, _ in imports(module) if not target.startswith("imgrec.analysis.")} <= allowed, module


def test_inference_and_models_need_no_lightning_and_nothing_of_training() -> None:
    for module in MODULES:
        if module.startswith(("imgrec.inference", "imgrec.models")):
            assert "pytorch_lightning" not in slow_imports(module), module


def test_a_public_name_stands_in_one_module() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        for node in parsed(module).body:
            for name in _bound(node):
                homes[name].append(module)
    del homes["main"]  # of each command
    twice = {name: homes[name] for name in homes if len(homes[name]) > 1 and not name.startswith("_")}
    assert twice == {}


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
