"""The checker of the source's layout: sections, what each uses, and what it finds wrong."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from support import ROOT

SOURCE = (ROOT / "tbmon.py").read_text("utf-8")
TREE = ast.parse(SOURCE)
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
