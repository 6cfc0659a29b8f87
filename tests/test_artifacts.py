"""A task's wasm module, taken out of a real container through a real engine: the right one, all of
it, and no more.
"""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.asking import PASSWORD, Answer, ask, fetch
from support.engine import Node, Proxy
from support.machine import wait_for
from support.modules import CACHE, LARGE, MOST, OLD, SMALL, VERSIONS, Module, digest, module_path
from support.node_words import IDS, WALLET, header, output, received
from support.programs import Program, end, over_files, write

EVENT_DB = f"/app/build/datadb/{WALLET}-eventDB.json"
SECRET = b"outside of the cache"


def task_of(number: int) -> str:
    return f"{number:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c"


TOO_LARGE = Module(4, VERSIONS[1], MOST + 1)
MODULES = (SMALL, LARGE, OLD, TOO_LARGE)
NEVER_CACHED, WITHOUT_HASH = 5, 6
LINKS = {  # number of the task: what makes its module a link that leads elsewhere
    10: f"ln -s /etc/passwd {module_path(10)}",
    11: f"ln -s ../../../../../../etc/passwd {module_path(11)}",
    12: f"ln -s {EVENT_DB} {module_path(12)}",
    13: f"ln -s /outside/{digest(13)} {CACHE}/{VERSIONS[1]}/{digest(13)}",
    14: f"ln -s /outside {CACHE}/9.9.9",
    15: f"ln -s /nowhere {module_path(15)}",
}
ODD = {
    20: f"mkdir {module_path(20)}",
    21: f"/bin/busybox mkfifo {module_path(21)}",
}  # there, but no file


def lines() -> Iterator[str]:
    """Every task's receipt, output and end."""
    for number in (*(one.number for one in MODULES), NEVER_CACHED, WITHOUT_HASH, *LINKS, *ODD):
        wasm = {} if number == WITHOUT_HASH else {"wasm": {"size": 1, "hash": digest(number)}}
        name, run = task_of(number), {**wasm, "prepare": {"cached": True}}
        yield received(name)
        yield output(True, executionId=name, execution=run)
        yield f"Execution {name} completed"


def furnish(node: Node) -> None:
    """Put the cache, and what links may lead to, into the container."""
    for module in MODULES:
        node.put(module_path(module.number, module.version), module.content)
    for path in ("/etc/passwd", EVENT_DB, f"/outside/{digest(13)}/prepared.wasm"):
        node.put(path, SECRET)
    node.put(f"/outside/{digest(14)}/prepared.wasm", SECRET)
    folders = " ".join(
        f"{CACHE}/{VERSIONS[1]}/{digest(number)}"
        for number in (*LINKS, *ODD)
        if number not in (13, 14)
    )
    node.shell(f"mkdir -p {folders}; " + "; ".join((*LINKS.values(), *ODD.values())))
    node.put(f"{module_path(20)}/secret", SECRET)


class Site(NamedTuple):
    node: Node
    proxy: Proxy
    program: Program


@pytest.fixture(scope="module")
def site(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node with a furnished cache that has done all tasks, and a monitor that asks the engine
    through a proxy.
    """
    folder = tmp_path_factory.mktemp("artifacts")
    node, proxy = Node(folder / "io"), Proxy(folder / "proxy.sock")
    settings = {
        "CONTAINER_NAME": node.name,
        "DOCKER_HOST": proxy.url,
        "MAX_ARTIFACT_BYTES": str(MOST),
    }
    program = Program(folder / "program", API_RATE_LIMIT="0", **settings)
    try:
        node.run()
        furnish(node)
        for line in lines():
            node.say(header(line))
        program.start()
        wait_for(lambda: program.get(f"/api/tasks/{task_of(21)}")[0] == 200)
        wait_for(lambda: program.get(f"/api/tasks/{task_of(21)}")[1]["status"] == "completed")
        yield Site(node, proxy, program)
        end(program)
    finally:
        if program.process.poll() is None:
            program.process.kill()
        node.close()
        proxy.close()


def artifacts(
    program: Program, number: int, hash_of: int | None = None, password: str = PASSWORD
) -> Answer:
    """The list of a task's artifacts, or one of them by its hash."""
    path = f"/api/tasks/{task_of(number)}/artifacts"
    return ask(program, path if hash_of is None else f"{path}/{digest(hash_of)}", password=password)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_found_by_its_hash_in_whatever_version_has_it(
    site: Site, module: Module
) -> None:
    answer = artifacts(site.program, module.number)
    listed = {"hash": digest(module.number), "type": "wasm", "size_bytes": module.size}
    assert (answer.status, answer.json) == (200, {"artifacts": [listed]})
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("module", [SMALL, LARGE, OLD])
def test_a_module_is_downloaded_byte_by_byte_as_it_is(site: Site, module: Module) -> None:
    name = digest(module.number)
    for path in (
        f"/api/tasks/{task_of(module.number)}/artifacts/{one}" for one in (name, name.upper())
    ):
        answer = fetch(site.program, path, Accept_Encoding="gzip")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/wasm")
        assert answer.body == module.content
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}.wasm"'
        assert int(answer.headers["Content-Length"]) == module.size
        assert (answer.headers["Content-Encoding"], answer.headers["Cache-Control"]) == (
            None,
            "no-store",
        )


def test_head_tells_of_a_module_and_sends_none_of_it(site: Site) -> None:
    answer = fetch(site.program, f"/api/tasks/{task_of(1)}/artifacts/{digest(1)}", "HEAD")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (
        200,
        b"",
        "application/wasm",
    )


def test_of_one_module_in_several_versions_the_newest_is_given(site: Site) -> None:
    site.node.put(module_path(SMALL.number, VERSIONS[0]), b"\0asm of the version before")
    assert artifacts(site.program, SMALL.number).json["artifacts"][0]["size_bytes"] == SMALL.size
    assert artifacts(site.program, SMALL.number, SMALL.number).body == SMALL.content


@pytest.mark.parametrize(
    ("number", "hash_of"),
    [(1, 99), (1, 2), (2, 1), (NEVER_CACHED, NEVER_CACHED), (WITHOUT_HASH, 1), (77, 1)],
    ids=[
        "unknown",
        "another task's",
        "another task's too",
        "not cached",
        "task without a hash",
        "unknown task",
    ],
)
def test_what_is_not_this_tasks_module_is_404(site: Site, number: int, hash_of: int) -> None:
    answer = artifacts(site.program, number, hash_of)
    assert (answer.status, list(answer.json)) == (404, ["error"])


@pytest.mark.parametrize("number", [NEVER_CACHED, WITHOUT_HASH])
def test_a_task_whose_module_is_not_there_has_none_listed(site: Site, number: int) -> None:
    answer = artifacts(site.program, number)
    assert (answer.status, answer.json) == (200, {"artifacts": []})


def test_the_list_of_an_unknown_task_is_404(site: Site) -> None:
    assert artifacts(site.program, 77).status == 404


def asked_for(proxy: Proxy, since: int = 0) -> set[str]:
    """The paths in the container whose archive or stat the engine was asked for."""
    queries = [
        urllib.parse.urlsplit(target).query
        for _, target in proxy.asked[since:]
        if "/archive?" in target
    ]
    return {urllib.parse.parse_qs(query)["path"][0] for query in queries}


def is_on_the_way(path: str) -> bool:
    """True for the first task's module, and the folders that it is in."""
    return any(f"{module_path(1, version)}/".startswith(f"{path}/") for version in VERSIONS)


@pytest.mark.parametrize(
    "name", ["..%2f..%2f..", "%2e%2e", "prepared.wasm", digest(1)[:-1], digest(1) + "0", "%00", "*"]
)
def test_a_name_that_is_no_hash_reaches_no_file(site: Site, name: str) -> None:
    before = len(site.proxy.asked)
    answer = ask(site.program, f"/api/tasks/{task_of(1)}/artifacts/{name}", password=PASSWORD)
    assert (answer.status, list(answer.json)) == (404, ["error"])
    in_cache = {path for path in asked_for(site.proxy, before) if path.startswith(CACHE)}
    assert [path for path in in_cache if not is_on_the_way(path)] == []


def test_a_module_beyond_the_limit_is_refused_and_told_how(site: Site) -> None:
    answer = artifacts(site.program, TOO_LARGE.number, TOO_LARGE.number)
    assert (answer.status, list(answer.json)) == (413, ["error"])
    assert "MAX_ARTIFACT_BYTES" in answer.json["error"] and str(MOST + 1) in answer.json["error"]


@pytest.mark.parametrize("password", ["", "open sesam", "größe"])
@pytest.mark.parametrize("hash_of", [None, 1, 99])
def test_without_the_password_nothing_is_told(
    site: Site, hash_of: int | None, password: str
) -> None:
    answer = artifacts(site.program, 1, hash_of, password)
    assert (answer.status, list(answer.json)) == (401, ["error"])


@pytest.mark.parametrize("number", [*LINKS, *ODD])
def test_what_leads_out_of_the_cache_or_is_no_file_is_not_followed(site: Site, number: int) -> None:
    listed, got = artifacts(site.program, number), artifacts(site.program, number, number)
    assert SECRET not in got.body
    assert (listed.status, listed.json) == (200, {"artifacts": []})
    assert (got.status, list(got.json)) == (404, ["error"])


def test_without_a_cache_there_are_none(site: Site) -> None:
    site.node.shell(f"mv {CACHE} {CACHE}.aside")
    try:
        listed, got = artifacts(site.program, 1), artifacts(site.program, 1, 1)
        assert (listed.status, listed.json, got.status) == (200, {"artifacts": []}, 404)
    finally:
        site.node.shell(f"mv {CACHE}.aside {CACHE}")


def test_the_engine_is_only_asked_with_get_and_head_for_what_is_allowed(site: Site) -> None:
    assert artifacts(site.program, 1, 1).status == 200
    asked, name = site.proxy.asked, re.escape(site.node.name)
    assert {method for method, _ in asked} == {"GET", "HEAD"}
    call = re.compile(
        rf"(?:/v[\d.]+)?/(?:version|_ping|containers/{name}/(?:json|logs|stats|archive))"
    )
    assert [target for _, target in asked if not call.fullmatch(target.partition("?")[0])] == []
    folders = tuple(f"{folder}/" for folder in (CACHE, "/app/logs/@truebit", "/app/build/datadb"))
    paths = asked_for(site.proxy)
    assert [path for path in paths if not f"{path}/".startswith(folders) or ".." in path] == []
    assert {CACHE, module_path(1)} <= paths


def test_an_engine_that_is_gone_is_told_as_such(
    site: Site, program: Callable[..., Program], tmp_path: Path
) -> None:
    proxy = Proxy(tmp_path / "proxy.sock", call=b"/")
    own = program(CONTAINER_NAME=site.node.name, DOCKER_HOST=proxy.url).start()
    wait_for(lambda: own.get(f"/api/tasks/{task_of(1)}")[0] == 200)
    assert artifacts(own, 1, 1).body == SMALL.content
    proxy.cut_after = lambda: 0  # on the connections that are open, too
    proxy.close()
    for hash_of in (None, 1):
        answer = artifacts(own, 1, hash_of)
        assert (answer.status, list(answer.json)) == (503, ["error"])
        assert re.fullmatch(r"the engine does not give it: .{10,}", answer.json["error"])
        assert int(answer.headers["Retry-After"]) > 0
    assert ask(own, f"/api/tasks/{task_of(1)}").status == 200  # what is stored is still told


def test_without_docker_the_list_is_empty(tmp_path: Path) -> None:
    program, name = over_files(tmp_path), IDS[0]
    run = {"wasm": {"hash": digest(1)}, "prepare": {"cached": True}}
    write(program, header(received(name)), header(output(True, executionId=name, execution=run)))
    program.start()
    try:
        wait_for(lambda: program.get(f"/api/tasks/{name}")[0] == 200)
        path = f"/api/tasks/{name}/artifacts"
        assert program.private(path) == {"artifacts": []}
        assert ask(program, f"{path}/{digest(1)}", password=PASSWORD).status == 404
        assert ask(program, path).status == 401
    finally:
        end(program)


@pytest.mark.parametrize("size", ["300M", "1500M"])
def test_a_large_cache_keeps_nobody_waiting(site: Site, size: str) -> None:
    big = f"{CACHE}/0.9.0/{digest(98)}"  # it stands before all others
    site.node.shell(f"mkdir -p {big}; /bin/busybox truncate -s {size} {big}/prepared.wasm")
    try:
        began = time.monotonic()
        answer = artifacts(site.program, NEVER_CACHED)
        assert (answer.status, answer.json) == (200, {"artifacts": []})
        assert time.monotonic() - began < 5
    finally:
        site.node.shell(f"/bin/busybox rm -r {CACHE}/0.9.0")
