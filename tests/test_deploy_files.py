"""The files to deploy with: what compose and the linters make of them, and that they name what
exists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from support import ROOT
from support.deployment import compose
from support.machine import missing

import aggregator
import tbmon

FILES = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").glob("docker-compose.*.yml"))]
DEMANDED = {
    "docker-compose.yml": {},
    "docker-compose.aggregator.yml": {"AGGREGATOR_PASSWORD": "a1"},
    "docker-compose.coolify.yml": {
        "API_KEY": "of this test",
        "DOMAIN": "monitor.example.org",
        "DOCKER_GID": "999",
    },
    "docker-compose.federation.yml": {"AGGREGATOR_PASSWORD": "a1", "MONITOR_PASSWORD": "m1"},
    "docker-compose.https.yml": {
        "API_KEY": "of this test",
        "DOMAIN": "monitor.example.org",
        "ACME_EMAIL": "a@b.org",
    },
    "docker-compose.leafhub.yml": {
        "AGGREGATOR_PASSWORD": "a1",
        "MONITOR_PASSWORD": "m1",
        "LEAF_PASSWORD": "l1",
        "TLS_CERT": "/etc/hub/cert.pem",
        "TLS_KEY": "/etc/hub/key.pem",
    },
    "docker-compose.remote.yml": {"API_KEY": "of this test", "ENGINE_DIR": "/run/tbmon-tunnel"},
    "docker-compose.socket.yml": {"DOCKER_GID": "999"},
}
FIXED = {  # settings that an operator has no use for in a container, and where they are set instead
    "PORT": "the published port",
    "HOST": "the image",
    "DB_PATH": "the volume",
    "KEY_DIR": "the volume",
    "DOCKER_HOST": "the file",
    "DOCKER_SOCKET_PATH": "the file",
    "DOCKER_TLS_VERIFY": "the file",
    "DOCKER_CERT_PATH": "the file",
    "LOG_DIR": "needs a volume",
    "FEDERATION_TLS_CA": "needs a volume",
    "WS_AUTH_TIMEOUT": "without effect",
}


def config(file: Path, settings: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **settings}
    return subprocess.run(
        (*compose(), "--file", str(file), "config"), env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_compose_takes_each_file_with_what_it_demands(file: Path, tmp_path: Path) -> None:
    taken = config(file, DEMANDED[file.name], tmp_path)
    assert (taken.returncode, taken.stderr) == (0, "") and "services:" in taken.stdout


def test_no_file_goes_without_what_it_demands(tmp_path: Path) -> None:
    for file in FILES:
        assert set(re.findall(r"\$\{(\w+):\?", file.read_text())) == DEMANDED[file.name].keys(), (
            file.name
        )
    https = ROOT / "deploy" / "docker-compose.https.yml"
    refused = config(https, {"DOMAIN": "a.org", "ACME_EMAIL": "a@b.org"}, tmp_path)
    assert refused.returncode != 0 and "API_KEY" in refused.stderr


def test_a_monitor_takes_every_setting_it_has() -> None:
    common = (ROOT / "deploy" / "common.yml").read_text()
    known = {item.name.upper() for item in fields(tbmon.Config)}
    assert set(re.findall(r"^      - ([A-Z_]+)$", common, re.M)) == known - FIXED.keys()


def test_only_settings_that_exist_are_set() -> None:
    known = {item.name.upper() for item in (*fields(tbmon.Config), *fields(aggregator.Config))}
    known |= {
        "LISTEN",
        "STORE_DIR",
        "TLS_CERT",
        "TLS_KEY",
        "MONITOR_PASSWORD",
        "AGGREGATOR_PASSWORD",
        "LEAF_PASSWORD",
        "DOMAIN",
    }
    for file in FILES:
        assert set(re.findall(r"^      ([A-Z_]+):", file.read_text(), re.M)) <= known, file.name


def test_the_units_set_what_exists() -> None:
    known = {item.name.upper() for item in (*fields(tbmon.Config), *fields(aggregator.Config))}
    known |= {f"{name}_FILE" for name in known} | {"MALLOC_ARENA_MAX", "NODE_SOCKET"}
    for unit in (ROOT / "deploy").glob("*.service"):
        lines = re.findall(r"^Environment=(.+)$", unit.read_text(), re.M)
        names = {word.partition("=")[0] for line in lines for word in line.split()}
        assert names and names <= known, unit.name


def test_the_example_names_what_the_files_ask_for() -> None:
    shown = set(re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
    asked = set(
        re.findall(
            r"\$\{(\w+)|^      - ([A-Z_]+)$", "".join(file.read_text() for file in FILES), re.M
        )
    )
    common = re.findall(r"^      - ([A-Z_]+)$", (ROOT / "deploy" / "common.yml").read_text(), re.M)
    assert shown <= {name for pair in asked for name in pair} | {*common}
    assert {name for demanded in DEMANDED.values() for name in demanded} <= shown


def test_every_container_has_as_few_rights() -> None:
    for file in (*FILES, ROOT / "deploy" / "common.yml"):
        for service in re.split(
            r"^  (?=[a-z-]+:$)", file.read_text().partition("services:")[2], flags=re.M
        )[1:]:
            if "    image:" in service:
                wanted = (
                    "read_only: true",
                    "cap_drop: [ALL]",
                    'security_opt: ["no-new-privileges:true"]',
                )
                assert all(words in service for words in wanted), (file.name, service[:40])


def test_the_files_that_comments_and_commands_name_exist() -> None:
    texts = [
        path.read_text() for path in (*FILES, *(ROOT / "deploy").glob("*.*"), ROOT / ".env.example")
    ]
    named = set(re.findall(r"[\w./@-]+\.(?:yml|cfg|conf|service|md)\b", "\n".join(texts)))
    ours = {Path(name).name.lstrip("-") for name in named if not name.startswith("/")}
    there = {
        path.name
        for path in (*ROOT.glob("*"), *(ROOT / "deploy").glob("*"), *(ROOT / "docs").glob("*"))
    }
    assert ours - there == {"docker.service", "nats-server.service"}


def linter(name: str) -> str:
    """Beside the interpreter, where pip puts it, or on the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        missing(name)
    return str(found)


LINTED = {
    "hadolint": ["Dockerfile"],
    "yamllint": ["--strict", "docker-compose.yml", "deploy"],
    "shellcheck": [".ci/run"],
}


@pytest.mark.parametrize("name", LINTED)
def test_the_linters_find_nothing(name: str) -> None:
    done = subprocess.run((linter(name), *LINTED[name]), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
