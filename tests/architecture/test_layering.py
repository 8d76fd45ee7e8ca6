"""The rules of who may import whom, and what no file may do. Each failure says what to do about it.

Imports count wherever they stand: inside a function or under TYPE_CHECKING they tie packages together just as much.
"""

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("worldkv", "scheduler", "monitoring", "cluster")
# What a package must not import, and what to do instead.
FORBIDDEN = {
    "worldkv": (
        {"cluster", "scheduler", "monitoring", "ray", "prometheus_client"},
        "the library is one process on one device: pass what it needs in from outside, as plain values or a Protocol",
    ),
    "scheduler": (
        {"torch", "ray", "cluster", "monitoring", "prometheus_client"},
        "policy is a pure function of a snapshot: let the caller read tensors, actors and clocks and pass plain values",
    ),
    "monitoring": (
        {"cluster", "scheduler", "ray"},
        "monitoring reads frozen stats: let the cluster hand them over",
    ),
}
SCHEDULER_MAY_USE = {"worldkv.ids", "worldkv.errors", "worldkv.camera"}
CATCH_ALL_BOUNDARIES = ("worldkv/cli/", "cluster/")
CUDA_QUEUES = {
    "torch.cuda.Stream",
    "torch.cuda.Event",
    "torch.cuda.ExternalStream",
    "torch.cuda.stream",
    "torch.cuda.current_stream",
    "torch.cuda.default_stream",
    "torch.cuda.set_stream",
}
QUEUE_NAMES = {name.rpartition(".")[2] for name in CUDA_QUEUES}
QUEUE_METHODS = {"record_stream", "wait_stream", "wait_event", "record_event"}
QUEUE_HOME = "worldkv/memory/transfer.py"


def files_of(package: str) -> dict[str, ast.Module]:
    """Path from the repository root -> syntax tree."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(), str(path)) for path in paths}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported: the module, and with `from` also each name in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def relative_imports(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def part_graph(package: str, trees: Mapping[str, ast.AST]) -> dict[str, dict[str, str]]:
    """Part -> part it imports -> where. A part is a sub-package, or a module beside them."""
    graph: dict[str, dict[str, str]] = {}
    for path, tree in trees.items():
        part = path.removesuffix(".py").split("/")[1]
        for line, name in imports(tree):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top == package and other not in ("", part):
                graph.setdefault(part, {}).setdefault(other, f"{path}:{line}")
    return graph


def find_cycle(graph: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The parts of one import cycle, the first again at the end; empty when there is none."""
    done: set[str] = set()

    def visit(part: str, way: list[str]) -> list[str]:
        if part in way:
            return [*way[way.index(part) :], part]
        if part in done:
            return []
        for other in graph.get(part, {}):
            if cycle := visit(other, [*way, part]):
                return cycle
        done.add(part)
        return []

    return next((cycle for part in graph if (cycle := visit(part, []))), [])


def catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def cuda_queues(tree: ast.AST) -> list[int]:
    """Lines that name a CUDA stream or event."""
    lines = [line for line, name in imports(tree) if name in CUDA_QUEUES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            named = node.attr in QUEUE_NAMES and ast.unparse(node) in CUDA_QUEUES
            lines += [node.lineno] if named or node.attr in QUEUE_METHODS else []
    return sorted(lines)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_what_lies_above_it(package):
    forbidden, remedy = FORBIDDEN[package]
    faults = [
        f"{path}:{line} imports {name}"
        for path, tree in files_of(package).items()
        for line, name in imports(tree)
        if name.split(".")[0] in forbidden
    ]
    assert not faults, "\n".join([*faults, f"-> {remedy}"])


def test_the_scheduler_uses_only_ids_errors_and_camera_of_the_library():
    faults = [
        f"{path}:{line} imports {name}"
        for path, tree in files_of("scheduler").items()
        for line, name in imports(tree)
        if name.startswith("worldkv") and ".".join(name.split(".")[:2]) not in SCHEDULER_MAY_USE
    ]
    remedy = f"-> of worldkv the scheduler may use {', '.join(sorted(SCHEDULER_MAY_USE))}: pass anything else in"
    assert not faults, "\n".join([*faults, remedy])


@pytest.mark.parametrize("package", PACKAGES)
def test_parts_of_a_package_import_each_other_in_one_direction_only(package):
    graph = part_graph(package, files_of(package))
    cycle = find_cycle(graph)
    steps = [f"{graph[a][b]}: {a} imports {b}" for a, b in itertools.pairwise(cycle)]
    remedy = (
        "-> move what both need into the lower one or a module below both (as worldkv/geometry.py); "
        "a Protocol lives with its caller; an import inside a function or under TYPE_CHECKING is no way out"
    )
    assert not cycle, "\n".join([f"import cycle {' -> '.join(cycle)}", *steps, remedy])


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_written_from_the_root(package):
    faults = [f"{path}:{line}" for path, tree in files_of(package).items() for line in relative_imports(tree)]
    assert not faults, "\n".join([*faults, "-> write `from package.module import name`: the rules here read only that"])


def modules_of(package: str) -> list[str]:
    """Every module that can be imported; `__main__` would run."""
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files_of(package)]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize(
    "modules",
    [["worldkv", "worldkv.errors", "worldkv.stats", "worldkv.camera"], modules_of("scheduler")],
    ids=["library", "scheduler"],
)
def test_importing_it_loads_neither_torch_nor_ray(modules):
    code = f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'ray'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    remedy = f"-> find who does: python -X importtime -c 'import {', '.join(modules)}'; then move it to a module below"
    assert not loaded, f"importing {', '.join(modules)} loads {', '.join(loaded)}\n{remedy}"


def test_no_file_is_named_for_having_no_place():
    names = {"utils.py", "util.py", "common.py", "helpers.py", "helper.py", "misc.py"}
    faults = [path for package in PACKAGES for path in files_of(package) if path.rsplit("/", 1)[1] in names]
    assert not faults, "\n".join(
        [*faults, "-> name the file for the noun it is about, or put each part with its caller"]
    )


def test_only_command_line_and_actors_catch_everything():
    faults = [
        f"{path}:{node.lineno}"
        for package in PACKAGES
        for path, tree in files_of(package).items()
        if not path.startswith(CATCH_ALL_BOUNDARIES)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and catches_all(node)
    ]
    remedy = "-> name the exceptions that can come (worldkv/errors.py); clean up with `finally` or a context manager"
    assert not faults, "\n".join([*faults, remedy])


def test_only_the_transfer_module_handles_cuda_streams_and_events():
    faults = [
        f"{path}:{line}"
        for package in PACKAGES
        for path, tree in files_of(package).items()
        if path != QUEUE_HOME
        for line in cuda_queues(tree)
    ]
    remedy = f"-> ask {QUEUE_HOME} for the copy; streams and events elsewhere make its ordering impossible to check"
    assert not faults, "\n".join([*faults, remedy])


# The rules above are only as good as what they read; what follows shows them what they must find.


def test_imports_are_found_wherever_they_stand():
    source = """
import torch.nn as nn
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from worldkv.models import base
def late():
    import ray
"""
    found = {name for _, name in imports(ast.parse(source))}
    assert {"torch.nn", "worldkv.models", "worldkv.models.base", "ray"} <= found


def test_a_cycle_is_found_through_late_imports():
    sources = {
        "worldkv/a/one.py": "from worldkv.b.two import x",
        "worldkv/b/two.py": "def late():\n    from worldkv import c",
        "worldkv/c.py": "import worldkv.a.one",
        "worldkv/d.py": "import worldkv.a",
    }
    graph = part_graph("worldkv", {path: ast.parse(source) for path, source in sources.items()})
    assert find_cycle(graph) == ["a", "b", "c", "a"]
    del graph["c"]
    assert find_cycle(graph) == []


def test_relative_imports_are_found():
    assert relative_imports(ast.parse("from . import a\nfrom .b import c\nfrom d import e")) == [1, 2]


def test_catch_alls_are_told_from_named_exceptions():
    source = """
try: pass
except: pass
try: pass
except (OSError, Exception): pass
try: pass
except BaseException: raise
try: pass
except (OSError, ValueError): pass
"""
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    assert [catches_all(handler) for handler in handlers] == [True, True, True, False]


def test_cuda_streams_and_events_are_told_from_other_events():
    source = """
import threading, torch
from torch.cuda import Stream
threading.Event()
torch.cuda.Event()
tensor.record_stream(s)
with torch.cuda.stream(s): pass
torch.cuda.synchronize()
"""
    assert cuda_queues(ast.parse(source)) == [3, 5, 6, 7]
