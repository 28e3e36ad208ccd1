"""The house, read from its source: which room may import which, no circles, no torch where the desk decides."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the roof to the ground: a module imports modules of its own room and of rows below, never of rows above, nor of
# another room in its row. The longest name that fits a module says where it is.
LAYERS = (
    ("notebook",),  # the door from Python: it opens the front door
    ("__main__",),  # the front door
    ("desk.commands",),
    ("desk.run",),
    ("desk.show",),
    ("desk.check",),
    ("desk.plan",),
    ("desk.report",),
    ("desk",),
    ("worker", "embedded.training"),  # the bench's door; who makes the weights that ship uses what the bench uses
    ("stages",),
    ("bench",),  # what a stage is given
    ("quant", "attention", "cache", "parallel"),  # techniques
    ("search", "metrics", "embedded"),
    ("recording",),
    ("generation",),
    ("model",),
    ("sampler",),  # solvers and schedules are parts of a pipeline; their searches are arithmetic on what was recorded
    ("hardware",),
    ("technique",),  # which techniques there are, and what each is asked
    ("page",),  # what a page is made of: techniques' rows and the desk's report use it
    ("store",),  # what both halves share lies under both
    ("config",),
    ("",),  # runner itself
)
# All that the desk imports of what lies between the halves and the ground: a technique's torch-free files.
TORCH_FREE = ("rules", "cost", "rows")  # of any technique
DESK_ALSO = (
    *("cache.policy", "cache.exhaustive", "sampler.methods", "sampler.probes", "sampler.schedules"),
    *("model", "model.checkpoints", "model.headers", "model.object_file", "model.shapes"),
    "hardware.compute",
)
TECHNIQUES = ("quant", "attention", "cache", "sampler", "parallel")  # those that may come, too
# Who starts the processes of a run and shares its model among them. Models and stages know nothing of it.
PARALLEL_FROM = ("bench", "worker", "parallel")
# Runner itself lies under all; asked for one of these names, and only then, it opens the rooms that they are in.
LAZY_NAMES = {"": ("notebook.runs", "config.faults", "desk.run.launch")}
HYDRA = ("hydra", "omegaconf")
HYDRA_FROM = ("__main__", "desk", "config")
HEAVY = ("torch", "diffusers", "transformers", "numpy")
WITHOUT_TORCH = ("desk", "config", "store", "page", "technique")
# An import for a type's sake alone (under TYPE_CHECKING) may point up where it says so.
MARK = "# points up: a type alone"


@dataclass(frozen=True)
class Import:
    """One import: by which module (below runner; "" is runner itself), of which module, in which line, and when."""

    by: str
    of: str  # below runner, or another package's name
    line: int
    ours: bool
    lazy: bool = False  # inside a function
    typed: bool = False  # under TYPE_CHECKING
    marked: bool = False

    def __str__(self) -> str:
        when = " (for its type)" if self.typed else " (when it is called)" if self.lazy else ""
        what = f"runner.{self.of}" if self.ours else self.of
        return f"runner.{self.by}, line {self.line}: imports {what}{when}"


def modules(root: Path) -> dict[str, Path]:
    """Every module by its name below runner; a package by its own."""
    found = {}
    for path in sorted((root / "runner").rglob("*.py")):
        parts = path.relative_to(root / "runner").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, source: str, is_package: bool, known: Mapping[str, object]) -> list[Import]:
    """All imports of one module, wherever they stand in it."""
    lines, found = source.splitlines(), []
    above = ["runner", *name.split(".")] if name else ["runner"]
    package = above if is_package else above[:-1]

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = [*package[: len(package) - node.level + 1]] if node.level else []
        whole = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{whole}.{alias.name}"
            yield inner if inner.partition(".")[2] in known and inner.startswith("runner.") else whole

    def walk(node: ast.AST, lazy: bool, typed: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                marked = any(MARK in line for line in lines[child.lineno - 1 : child.end_lineno])
                for target in targets(child):
                    ours = target.partition(".")[0] == "runner"
                    of = target.partition(".")[2] if ours else target
                    found.append(Import(name, of, child.lineno, ours, lazy, typed, marked))
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            walk(child, lazy or inside, typed or (isinstance(child, ast.If) and _is_typed(child)))

    walk(ast.parse(source), False, False)
    return list(dict.fromkeys(found))


def _is_typed(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.dump(node.test)


def place(name: str) -> tuple[int, str] | None:
    """The row of a module, counted from the roof, and the room there that it is in; None for one without a row."""
    parts = name.split(".") if name else []
    for end in range(len(parts), -1, -1):
        room = ".".join(parts[:end])
        for row, rooms in enumerate(LAYERS):
            if room in rooms and (room or not name):
                return row, room
    return None


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def broken(found: list[Import]) -> list[str]:
    """What breaks a rule, each with the import and the rule."""
    wrong = []
    for one in found:
        rules = [*_layers(one), *_desk(one), *_parallel(one), *_stages(one)] if one.ours else list(_hydra(one))
        wrong += [f"{one}\n    {rule}" for rule in rules]
    return wrong


def _layers(one: Import) -> Iterator[str]:
    by, of = place(one.by), place(one.of)
    if one.lazy and one.of in LAZY_NAMES.get(one.by, ()):
        return
    if by is None or of is None:
        yield f"no row of LAYERS has a room for {one.by if by is None else one.of}"
    elif by[1] != of[1] and of[0] <= by[0] and not (one.typed and one.marked):
        hint = f"; for a type alone, say so: {MARK}" if one.typed else ""
        where = "in the same row" if of[0] == by[0] else "above it"
        yield f"imports point down: {of[1]} is {where} as seen from {by[1]} (LAYERS){hint}"
    elif one.marked and not (one.typed and of[0] <= by[0] and by[1] != of[1]):
        yield "it is marked to point up, and does not: take the mark away"


def _desk(one: Import) -> Iterator[str]:
    if (
        not within(one.by, ("desk", "__main__", "notebook"))
        or one.typed
        or within(one.of, (*WITHOUT_TORCH, "__main__"))
    ):
        return
    room, _, name = one.of.partition(".")
    if one.of not in DESK_ALSO and one.of != "" and not (room in TECHNIQUES and name in TORCH_FREE):
        yield f"of a technique the desk imports {', '.join(TORCH_FREE)} and DESK_ALSO alone"


def _parallel(one: Import) -> Iterator[str]:
    if within(one.of, ("parallel",)) and not within(one.by, PARALLEL_FROM) and one.of != "parallel.rules":
        yield f"what is parallel is put around a model from outside: by {', '.join(PARALLEL_FROM)} alone"


def _stages(one: Import) -> Iterator[str]:
    if within(one.by, ("stages",)) and within(one.of, ("stages",)) and one.of != "stages":
        yield "stages do not import each other"


def _hydra(one: Import) -> Iterator[str]:
    if one.of.partition(".")[0] in HYDRA and not within(one.by, HYDRA_FROM):
        yield f"only {', '.join(HYDRA_FROM)} know Hydra"


def circles(found: list[Import], lazy: bool) -> list[list[str]]:
    """Groups of modules that import each other, each sorted; with those that are imported when called, if `lazy`."""
    arrows: dict[str, set[str]] = {}
    for one in found:
        if one.ours and not one.typed and one.by != one.of and (lazy or not one.lazy):
            arrows.setdefault(one.by, set()).add(one.of)
    reach: dict[str, set[str]] = {}
    for start in arrows:
        seen, todo = set(), [start]
        while todo:
            for after in arrows.get(todo.pop(), ()):
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
        reach[start] = seen
    groups = {
        tuple(sorted({name, *(other for other in reached if name in reach.get(other, ()))}))
        for name, reached in reach.items()
        if name in reached
    }
    return [list(group) for group in sorted(groups)]


@pytest.fixture(scope="module")
def house() -> dict[str, Path]:
    return modules(ROOT)


@pytest.fixture(scope="module")
def found(house: dict[str, Path]) -> list[Import]:
    return [
        one
        for name, path in house.items()
        for one in imports(name, path.read_text(encoding="utf-8"), path.name == "__init__.py", house)
    ]


def test_imports_keep_the_rules_of_the_house(found: list[Import]) -> None:
    wrong = broken(found)
    assert not wrong, "\n".join(["", *wrong])


def test_every_module_has_a_row(house: dict[str, Path]) -> None:
    homeless = [name for name in house if place(name) is None]
    assert not homeless, f"no row of LAYERS has a room for {homeless}"


def test_the_doors_are_the_only_loose_modules(house: dict[str, Path]) -> None:
    doors = {"", "__main__", "worker"}
    loose = [name for name, path in house.items() if "." not in name and path.name != "__init__.py"]
    assert set(loose) <= doors, f"runner/ holds two doors and rooms; {set(loose) - doors} belong into a room"
    desk = [name for name, path in house.items() if name.rpartition(".")[0] == "desk" and path.name != "__init__.py"]
    assert not desk, f"desk/ holds rooms; {desk} belong into one"


def test_every_name_that_is_imported_of_ours_is_there(house: dict[str, Path], found: list[Import]) -> None:
    lost = [str(one) for one in found if one.ours and one.of not in house]
    assert not lost, lost


def test_no_test_imports_a_test() -> None:
    """What several need is in tests/support."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if any(part.startswith("test_") for name in [module, *names] for part in name.split(".")):
                wrong.append(f"{path.relative_to(ROOT)}, line {node.lineno}")
    assert not wrong, wrong


def test_every_name_that_a_string_spells_out_is_there(house: dict[str, Path]) -> None:
    """Of the tables of commands and schemes, of what is started by name, of what tests put something in place of."""
    lost = []
    for path in (*(ROOT / "runner").rglob("*.py"), *(ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if not re.fullmatch(r"runner(\.[A-Za-z_]\w*)+", text):
                continue
            home, _, last = text.partition(".")[2].rpartition(".")
            spoken = home in house and re.search(rf"\b{last}\b", house[home].read_text(encoding="utf-8"))
            if text.partition(".")[2] not in house and not spoken:
                lost.append(f"{path.relative_to(ROOT)}, line {node.lineno}: {text}")
    assert not lost, lost


@pytest.mark.parametrize("lazy", [False, True], ids=["at import", "when called, too"])
def test_no_modules_import_each_other(found: list[Import], lazy: bool) -> None:
    groups = circles(found, lazy)
    assert not groups, f"a circle of imports: {groups}"


def test_the_desk_and_what_both_halves_share_import_no_torch(house: dict[str, Path]) -> None:
    """Module by module in a process of its own, so that the first one that brings it is named."""
    names = [f"runner.{name}" for name in house if within(name, WITHOUT_TORCH)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [package for package in {HEAVY!r} if package in sys.modules]\n"
        "    if heavy:\n"
        "        sys.exit(f'{name} imports {heavy}, itself or by what it imports: the desk answers without torch')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def made_up(**sources: str) -> list[Import]:
    known = {name.replace("__", "."): None for name in sources}
    return [one for name, source in sources.items() for one in imports(name.replace("__", "."), source, False, known)]


@pytest.mark.parametrize(
    ("by", "source", "rule"),
    [
        ("model__osp12", "from runner.parallel import cfg", "imports point down"),
        ("stages__dump", "from runner.parallel import cfg", "from outside"),
        ("stages__dump", "from runner.stages import sample", "stages do not import each other"),
        ("store__locks", "def f():\n    import runner.desk.run", "imports point down"),
        ("bench__context", "from ..desk.plan import graph", "imports point down"),
        ("desk__run__job", "from runner.quant import w8a8", "rules, cost, rows"),
        ("desk__run__job", "from runner.hardware import cuda", "rules, cost, rows"),
        ("quant__w8a8", "from runner.cache import policy", "in the same row"),
        ("quant__w8a8", "def f():\n    from omegaconf import OmegaConf", "know Hydra"),
        ("attic__box", "import runner.model", "no row of LAYERS"),
        ("notebook__runs", "from runner.quant import w8a8", "rules, cost, rows"),
        ("desk__run__job", "from runner.notebook import runs", "imports point down"),
        ("model__a", "if TYPE_CHECKING:\n    from runner.bench.context import Context", "for a type alone, say so"),
        ("bench__a", f"if TYPE_CHECKING:\n    from runner.model import b  {MARK}", "take the mark away"),
    ],
)
def test_what_breaks_a_rule_is_named_with_the_rule(by: str, source: str, rule: str) -> None:
    known = dict.fromkeys(
        ["parallel.cfg", "stages.sample", "desk.plan.graph", "quant.w8a8", "cache.policy", "notebook.runs"]
    )
    wrong = broken(imports(by.replace("__", "."), source, False, known))
    assert any(rule in one and by.replace("__", ".") in one for one in wrong), wrong


@pytest.mark.parametrize(
    ("by", "source"),
    [
        ("bench__context", "def f():\n    from runner.parallel import cfg"),
        ("desk__run__job", "from runner.quant import cost"),
        ("config__recipes", "def f():\n    from hydra import compose"),
        ("model__a", f"if TYPE_CHECKING:\n    from runner.bench.context import Context  {MARK}"),
    ],
)
def test_what_keeps_the_rules_is_let_be(by: str, source: str) -> None:
    known = dict.fromkeys(["parallel.cfg", "quant.cost", "bench.context"])
    assert not broken(imports(by.replace("__", "."), source, False, known))


def test_runner_itself_opens_rooms_only_when_it_is_asked() -> None:
    known = {"notebook.runs": None, "stages.dump": None}
    now, lazy = "from runner.notebook import runs", "def __getattr__(name):\n    from runner.{} import {}"
    assert any("imports point down" in one for one in broken(imports("", now, True, known)))
    assert not broken(imports("", lazy.format("notebook", "runs"), True, known))
    assert broken(imports("", lazy.format("stages", "dump"), True, known))


def test_circles_are_found_with_the_lazy_ones_only_where_asked() -> None:
    two = made_up(model__a="from runner.model import b", model__b="def f():\n    from runner.model import a")
    assert circles(two, lazy=False) == [] and circles(two, lazy=True) == [["model.a", "model.b"]]
    typed = made_up(model__a="from runner.model import b", model__b="if TYPE_CHECKING:\n    from runner.model import a")
    assert circles(typed, lazy=True) == []
