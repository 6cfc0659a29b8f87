"""The layout of the source: sections use only what stands above them and have only the effect
they name.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "tbmon.py").read_text("utf-8")
TREE = ast.parse(SOURCE)
STATIC = ROOT / "static"

RULE = "# " + "-" * 75
BANNER = re.compile(rf"^{RULE}\n# (\d+)\. (\S.*?)\s+\(([a-z ]+)\)\n{RULE}$", re.M)
LABELS = {
    "environment",
    "pure",
    "disk",
    "network out",
    "docker socket",
    "threads",
    "listens",
    "process",
}

ALLOWED = {  # module or builtin -> labels of the sections that may use it
    "sqlite3": {"disk"},
    "docker": {"docker socket"},
    "requests": {"docker socket"},
    "urllib3": {"docker socket"},
    "nats": {"network out"},
    "aiohttp": {"network out"},
    "asyncio": {"network out"},
    "ssl": {"network out"},
    "socket": {
        "network out",
        "docker socket",
        "listens",
        "process",
    },  # process: systemd's notify socket
    "http": {"docker socket", "process"},  # process: the health check on the loopback address
    "urllib": {"process"},
    "bottle": {"listens"},
    "waitress": {"listens", "process"},
    "subprocess": set[str](),
    "importlib": set[str](),  # would hide an import from this test
    "__import__": set[str](),
    "eval": set[str](),
    "exec": set[str](),
    **dict.fromkeys(
        ("os", "fcntl", "open", "pathlib", "queue", "random", "threading", "time"),
        LABELS - {"pure"},
    ),
    **dict.fromkeys(("datetime.datetime.now", "datetime.datetime.today"), LABELS - {"pure"}),
}
HARMLESS = re.compile(
    r"sqlite3\.(Connection|Row|\w*Error)|urllib\.parse(\.\w+)*|http\.HTTPStatus(\.\w+)*|"
    r"importlib\.util\.find_spec"
)
STATEMENT = re.compile(
    r"\s*(?:(?:SELECT|INSERT|UPDATE|DELETE|CREATE|PRAGMA)\s|(?:BEGIN|COMMIT|ROLLBACK)\b"
    r"|(?i:select\s.*\sfrom\s|insert\s+(?:or\s+\w+\s+)?into\s|delete\s+from\s|"
    r"update\s+\w+\s+set\s))",
    re.S,
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Section(NamedTuple):
    """A numbered part of the source, from its banner's line on."""

    line: int
    number: int
    name: str
    label: str


def sections(source: str) -> list[Section]:
    """The sections that the banners of `source` begin, in the order they stand in."""
    return [
        Section(source.count("\n", 0, b.start()) + 1, int(b[1]), b[2], b[3])
        for b in BANNER.finditer(source)
    ]


def imported_names(tree: ast.AST) -> dict[str, str]:
    """{name as used: dotted name} of every import, wherever it stands."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
            names.update(
                {(top := alias.name.split(".")[0]): top for alias in node.names if not alias.asname}
            )
        elif isinstance(node, ast.ImportFrom):
            names.update(
                {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            )
    return names


def bound_names(node: ast.AST) -> set[str]:
    """The names that a function, lambda, comprehension or class binds for itself."""
    names = {
        child.id
        for child in ast.walk(node)
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)
    }
    names |= {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
    names |= {
        child.name
        for child in ast.walk(node)
        if isinstance(child, ast.ExceptHandler) and child.name
    }
    inner = [
        child
        for child in ast.walk(node)
        if isinstance(child, Function | ast.ClassDef) and child is not node
    ]
    names |= {child.name for child in inner}
    return names - {
        name for child in ast.walk(node) if isinstance(child, ast.Global) for name in child.names
    }


class Uses(ast.NodeVisitor):
    """Collects (line, dotted name) of whatever the source takes from its top level, its imports
    and builtins.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.imports = imported_names(tree)
        self.found: list[tuple[int, str]] = []
        self.scopes: list[set[str]] = []
        self.visit(tree)

    def within(self, scope: set[str], nodes: list[ast.AST]) -> None:
        self.scopes.append(scope)
        for node in nodes:
            self.visit(node)
        self.scopes.pop()

    def visit_scope(self, node: ast.AST) -> None:
        body = [
            child
            for name in ("body", "generators", "elt", "key", "value")
            for child in parts(node, name)
        ]
        for child in ast.iter_child_nodes(
            node
        ):  # decorators, defaults, annotations and bases belong outside
            if child not in body:
                self.visit(child)
        self.within(bound_names(node), body)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_scope
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_scope

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        functions = [child for child in node.body if isinstance(child, Function)]
        for child in (*node.decorator_list, *node.bases, *node.keywords, *functions):
            self.visit(child)  # a class's own names are not seen inside its functions
        own = {
            name
            for child in node.body
            if not isinstance(child, Function)
            for name in bound_names(child)
        }
        self.within(own, [child for child in node.body if not isinstance(child, Function)])

    def visit_Name(self, node: ast.Name) -> None:
        self.use(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        words, base = [node.attr], node.value
        while isinstance(base, ast.Attribute):
            words, base = [base.attr, *words], base.value
        if isinstance(base, ast.Name) and base.id in self.imports:
            self.use(base, ".".join([base.id, *words]))
        else:
            self.visit(node.value)

    def use(self, node: ast.Name, dotted: str) -> None:
        if isinstance(node.ctx, ast.Load) and not any(node.id in scope for scope in self.scopes):
            self.found.append(
                (node.lineno, self.imports.get(node.id, node.id) + dotted[len(node.id) :])
            )


def parts(node: ast.AST, name: str) -> list[ast.AST]:
    """The child or children of `node` in the field `name`."""
    value = getattr(node, name, [])
    return value if isinstance(value, list) else [value]


def top_names(tree: ast.Module) -> dict[str, int]:
    """{name: line} of every function, class and constant of the top level."""
    names: dict[str, int] = {}
    for node in tree.body:
        found = {node.name} if isinstance(node, Function | ast.ClassDef) else bound_names(node)
        names.update(dict.fromkeys(found, node.lineno))
    return names


def is_allowed(dotted: str, label: str) -> bool:
    """True if a section labelled `label` may use `dotted`."""
    matching = [labels for name, labels in ALLOWED.items() if f"{dotted}.".startswith(f"{name}.")]
    return all(label in labels for labels in matching) or HARMLESS.fullmatch(dotted) is not None


def imports_within(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of the imports inside functions, which run where they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in tree.body:
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in tree.body:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def text_of(node: ast.expr) -> str:
    """The text of a string constant, or of an f-string with `x` for what is filled in; else
    empty.
    """
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def findings(source: str) -> list[str]:
    """Every use of a later section, stray effect and stray SQL statement in `source`, as
    sentences.
    """
    tree, banners = ast.parse(source), sections(source)
    homes, found = top_names(tree), []

    def at(line: int) -> Section:
        return max(
            (s for s in banners if s.line <= line), default=Section(0, 0, "Header", "header")
        )

    for line, dotted in Uses(tree).found:
        if dotted in homes and at(homes[dotted]).number > at(line).number:
            found.append(
                f"line {line}: section {at(line).number} uses {dotted} of section "
                f"{at(homes[dotted]).number}"
            )
        elif dotted not in homes and not is_allowed(dotted, at(line).label):
            found.append(f"line {line}: {dotted} in a section labelled {at(line).label}")
    for line, dotted in imports_within(tree):
        if not is_allowed(dotted, at(line).label):
            found.append(f"line {line}: import of {dotted} in a section labelled {at(line).label}")
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and node not in prose and at(node.lineno).label != "disk":
            if STATEMENT.match(text_of(node)):
                found.append(f"line {node.lineno}: SQL outside the store")
            if isinstance(node, ast.Attribute) and node.attr in (
                "execute",
                "executemany",
                "executescript",
            ):
                found.append(f"line {node.lineno}: {node.attr}() outside the store")
    return found


def nodes(tree: ast.AST, begin: int = 1, end: int = sys.maxsize) -> int:
    """How much code there is from line `begin` to before line `end`, in syntax nodes.

    Those are counted that stand on a line. Blank lines, comments, long names and the formatter's
    layout add nothing.
    """
    return sum(begin <= node.lineno < end for node in ast.walk(tree) if hasattr(node, "lineno"))


def functions(tree: ast.AST) -> dict[str, int]:
    """{name and line: syntax nodes} of every function, methods included."""
    found = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return {f"{node.name}:{node.lineno}": nodes(node) for node in found}


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions and classes of the top level of over 70 nodes, a few lines, and no
    docstring.
    """
    return [
        node.name
        for node in tree.body
        if isinstance(node, Function | ast.ClassDef)
        and not node.name.startswith("_")
        and nodes(node) > 70
        and ast.get_docstring(node) is None
    ]


def static_files(pattern: str = "*") -> list[Path]:
    return [path for path in sorted(STATIC.rglob(pattern)) if path.is_file()]


def matches(pattern: bytes, paths: list[Path]) -> list[str]:
    """`file:line` of every line in which `pattern` is found."""
    lines = [
        (path, number, line)
        for path in paths
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
    ]
    return [
        f"{path.name}:{number}" for path, number, line in lines if re.search(pattern, line, re.I)
    ]


def test_sections_are_numbered_upwards_and_name_a_known_effect() -> None:
    found = sections(SOURCE)
    numbers = [section.number for section in found]
    assert len(found) >= 4 and numbers == sorted(set(numbers))
    assert {section.label for section in found} <= LABELS
    assert len(re.findall(r"^# -{5,}.*$", SOURCE, re.M)) == 2 * len(found), (
        "a banner that is not of the usual form"
    )


def test_the_store_is_the_only_section_labelled_disk() -> None:
    assert [(s.number, s.name) for s in sections(SOURCE) if s.label == "disk"] == [(4, "Store")]


def test_no_section_uses_a_later_one_or_has_an_effect_it_does_not_name() -> None:
    assert findings(SOURCE) == []


PLANTED = f"""
import os, sqlite3
import socket as plug
from time import time as clock
from urllib import parse, request
{RULE}
# 1. First   (pure)
{RULE}
LIMIT = 5
def good(later: int, db: sqlite3.Connection) -> int:
    "Select one from many."
    return later + max(limit for limit in [LIMIT]) + len(parse.quote("x"))
{RULE}
# 2. Second   (threads)
{RULE}
def later() -> None: ...
LATE = 1
class Late: ...
"""


def test_the_checker_finds_no_fault_in_a_clean_source() -> None:
    assert len(sections(PLANTED)) == 2 and findings(PLANTED) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("def bad(): return later()", "section 1 uses later of section 2"),
        ("bad = [later for x in (1, 2)]", "section 1 uses later of section 2"),
        ("def bad(x=LATE): ...", "section 1 uses LATE of section 2"),
        ("def bad(x: list[Late]) -> None: ...", "section 1 uses Late of section 2"),
        ("def bad() -> Late | None: ...", "section 1 uses Late of section 2"),
        ("bad: Late", "section 1 uses Late of section 2"),
        ("class Bad(Late): ...", "section 1 uses Late of section 2"),
        (
            "class Bad:\n    later = 1\n    def bad(self): return later",
            "section 1 uses later of section 2",
        ),
        ("def bad(): return plug.socket()", "socket.socket in a section labelled pure"),
        ("def bad(): return clock()", "time.time in a section labelled pure"),
        (
            "def bad(): return request.urlopen('x')",
            "urllib.request.urlopen in a section labelled pure",
        ),
        ("def bad(): return open('x')", "open in a section labelled pure"),
        ("def bad(): return __import__('nats')", "__import__ in a section labelled pure"),
        (
            "def bad():\n    import docker.errors",
            "import of docker.errors in a section labelled pure",
        ),
        (
            "def bad():\n    from http import client",
            "import of http.client in a section labelled pure",
        ),
        ("def bad(): return sqlite3.connect('x')", "sqlite3.connect in a section labelled pure"),
        ("def bad(db: sqlite3.Cursor): ...", "sqlite3.Cursor in a section labelled pure"),
        ("def bad(db): db.execute(LIMIT)", "execute() outside the store"),
        ("BAD = 'PRAGMA user_version'", "SQL outside the store"),
        ("BAD = f'''\n  select {LIMIT} from task'''", "SQL outside the store"),
    ],
)
def test_the_checker_reports_a_planted_fault(line: str, expected: str) -> None:
    reported = findings(PLANTED.replace("LIMIT = 5", f"LIMIT = 5\n{line}"))
    assert any(text.endswith(expected) for text in reported), reported


def test_importing_tbmon_has_no_side_effect_and_loads_nothing_heavy(tmp_path: Path) -> None:
    watched = (
        "socket. subprocess. sqlite3. os.mkdir os.rename os.remove os.system os.putenv "
        "signal. shutil. tempfile."
    )
    code = f"""
import json, sys, threading
sys.path.insert(0, {str(ROOT)!r})
events = []
def audit(event, args):
    writes = event == "open" and (set(str(args[1])) & set("wax+") or (args[2] or 0) & 3)
    if writes or event.startswith({tuple(watched.split())!r}):
        events.append(event + " " + repr(args))
sys.addaudithook(audit)
import tbmon
heavy = set(sys.modules) & {{"docker", "requests", "nats", "aiohttp", "asyncio", "bottle", "waitress"}}
print(json.dumps([events, sorted(heavy), threading.active_count(), tbmon.log.handlers + tbmon.log.root.handlers]))
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == [[], [], 1, []]
    assert list(tmp_path.iterdir()) == []


def test_blank_lines_comments_and_long_names_are_no_code() -> None:
    dense = "def f(a):\n    return a + 1\n"
    airy = (
        "# Why.\n\n\ndef plus_one(\n    number_of_tasks,\n):\n\n    return number_of_tasks + 1 "
        " # so\n"
    )
    assert nodes(ast.parse(dense)) == nodes(ast.parse(airy)) == 6
    assert nodes(ast.parse(dense), begin=2) == 4 and functions(ast.parse(dense)) == {"f:1": 6}


def test_the_files_stay_within_their_budgets_of_code() -> None:
    assert nodes(TREE) <= 43_000
    aggregator = ROOT / "aggregator.py"
    assert not aggregator.exists() or nodes(ast.parse(aggregator.read_text("utf-8"))) <= 5_200


def test_what_may_leave_and_how_it_is_sent_can_be_read_in_one_sitting() -> None:
    begins = {section.number: section.line for section in sections(SOURCE)}
    assert nodes(TREE, begins[5], begins[7]) <= 3_600


def test_functions_are_short() -> None:
    sizes = functions(TREE)
    assert statistics.median(sizes.values()) <= 60
    assert {name: size for name, size in sizes.items() if size > 460} == {}


def test_whatever_is_public_and_longer_than_a_few_lines_has_a_docstring() -> None:
    assert undocumented(TREE) == []
    assert undocumented(
        ast.parse("def f():\n" + " x = 1\n" * 24 + "def g():\n" + " x = 1\n" * 20)
    ) == ["f"]


def test_the_page_never_makes_markup_or_code_out_of_text(tmp_path: Path) -> None:
    pattern = rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\("
    planted = tmp_path / "planted.js"
    planted.write_text("let a;\nrow.innerHTML = a;\n")
    assert (STATIC / "app.js").is_file()
    assert matches(pattern, static_files("*.js")) == []
    assert matches(pattern, [planted]) == ["planted.js:2"]


def test_the_page_names_no_other_server() -> None:
    assert (STATIC / "app.js").is_file()
    # The name of the SVG language has the form of an address and is fetched by nobody.
    assert matches(rb"https?://(?!www\.w3\.org/2000/svg[\"'])", static_files()) == []
