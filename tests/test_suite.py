"""The tests themselves: what they may import, and what `make quick` takes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("test_*.py"))
SUPPORT = sorted((TESTS / "support").glob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """The modules that a source imports, wherever it does."""
    found = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return found | {node.module for node in froms if node.module}


def test_imports_are_found_at_the_top_and_within_functions() -> None:
    source = "import test_a, b\nfrom test_c import d\ndef e() -> None:\n    import test_f\n"
    assert imported(ast.parse(source)) == {"test_a", "b", "test_c", "test_f"}


@pytest.mark.parametrize("path", [*FILES, *SUPPORT], ids=lambda path: path.stem)
def test_nothing_imports_a_test_file_or_the_fixtures(path: Path) -> None:
    names = {file.stem for file in FILES} | {"conftest"}
    wrong = {name for name in imported(ast.parse(path.read_text("utf-8"))) if name in names}
    assert not wrong, "move what both need into tests/support, a fixture into tests/conftest.py"


def test_the_support_package_names_no_fixture() -> None:
    assert [path.name for path in SUPPORT if "pytest.fixture" in path.read_text("utf-8")] == []


def collected(folder: Path, *words: str) -> dict[str, set[str]]:
    """{name of a test file: its tests} that pytest would run."""
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
    done = subprocess.run((*command, *words), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        file, _, test = line.partition("::")
        if test:
            found.setdefault(Path(file).name, set()).add(test.partition("[")[0])
    return found


@pytest.mark.slow
def test_quick_takes_the_pure_files_and_nothing_that_needs_a_real_part() -> None:
    found = collected(ROOT, "--quick")
    assert {"test_config.py", "test_node_facts.py", "test_privacy.py", "test_store.py"} <= set(
        found
    )
    real = {"test_engine.py", "test_hub.py", "test_page.py", "test_api.py", "test_deploy.py"}
    assert real & set(found) == set()
    assert not any("100_000" in test for test in found["test_aggregator.py"])  # marked as slow


PLANTED = """
import pytest
def test_plain(tmp_path): ...
def test_of_a_container(node): ...
def test_of_a_page(browser): ...
@pytest.mark.slow
def test_that_lasts(): ...
"""


@pytest.mark.slow
def test_quick_leaves_out_a_test_that_asks_for_a_real_part_or_is_slow(tmp_path: Path) -> None:
    for name, first in (
        ("test_pure.py", "from support.node_words import header"),
        ("test_whole.py", "from support import ROOT, contract"),
        ("test_hubs.py", "from support.hubs import Hub"),
    ):
        (tmp_path / name).write_text(first + PLANTED)
    (tmp_path / "conftest.py").symlink_to(TESTS / "conftest.py")
    (tmp_path / "support").symlink_to(TESTS / "support")
    options = ("--quick", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), ".")
    assert collected(tmp_path, *options) == {"test_pure.py": {"test_plain"}}
