"""Images made without a registry: of the interpreter that runs the tests, and of programs on this
machine.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from support import ROOT
from support.engine import docker
from support.machine import missing

APPLETS = ("sh", "mkdir", "chown", "cat")
# Beside the interpreter is what requirements-dev.txt brings: a current nats-server.
PLACES = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
LEFT_OUT = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "idlelib",
    "tkinter",
    "lib2to3",
    "ensurepip",
}


def command(name: str) -> str:
    """The path of a program that a machine of CI has."""
    if (found := shutil.which(name, path=f"{PLACES}:/usr/sbin:/sbin")) is None:
        missing(name)
    return str(found)


def libraries(binaries: Iterable[str]) -> set[str]:
    """The shared libraries that programs load, by the names they load them under."""
    done = subprocess.run(
        ("ldd", *binaries), capture_output=True, text=True
    )  # a static one makes it fail
    return set(re.findall(r"(/\S+) \(0x", done.stdout))


def pack(files: Iterable[tuple[str, str]], folders: Iterable[str] = ("tmp",)) -> bytes:
    """A tar of files (path in the image, path here), of which links are followed, and of folders
    open to all.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
        for folder in folders:
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(member)
        for name, source in files:
            tar.add(source, name.lstrip("/"), recursive=False)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return packed.getvalue()


def make(tag: str, binaries: Iterable[str], files: Iterable[tuple[str, str]], *changes: str) -> str:
    """Import an image of programs with their libraries and a shell; `changes` are lines of a
    Dockerfile.
    """
    found = {path: path for path in (*binaries, *libraries(binaries))}
    found |= {"bin/busybox": command("busybox"), **dict(files)}
    words = [word for change in changes for word in ("--change", change)]
    docker("import", *words, "-", tag, data=pack(found.items()))
    return tag


def closure(names: Iterable[str]) -> Iterator[metadata.Distribution]:
    """What is installed here for these requirements, and for theirs."""
    waiting, seen = [Requirement(name) for name in names], set[str]()
    while waiting:
        wanted = waiting.pop()
        found, extras = (
            metadata.distribution(wanted.name),
            [{"extra": extra} for extra in (*wanted.extras, "")],
        )
        more = [Requirement(name) for name in found.requires or ()]
        waiting += [
            one
            for one in more
            if one.marker is None or any(one.marker.evaluate(extra) for extra in extras)
        ]
        if found.name not in seen:
            seen.add(found.name)
            yield found


def make_wheel(found: metadata.Distribution, folder: Path) -> None:
    """The wheel that an installed package came from, without its commands."""
    tags = [
        tag.split("-") for tag in re.findall(r"^Tag: (\S+)", found.read_text("WHEEL") or "", re.M)
    ]
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    name = re.sub(r"[^A-Za-z0-9.]+", "_", found.name)
    own = [
        path
        for path in found.files or ()
        if path.parts[0] != ".." and "__pycache__" not in path.parts
    ]
    record = next(path for path in own if path.name == "RECORD")
    lines = []
    with zipfile.ZipFile(folder / f"{name}-{found.version}-{tag}.whl", "w") as wheel:
        for path in own:
            if path != record and path.name not in ("INSTALLER", "REQUESTED", "direct_url.json"):
                data = Path(str(found.locate_file(path))).read_bytes()
                digest = (
                    base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                )
                lines.append(f"{path},sha256={digest},{len(data)}\n")
                wheel.writestr(str(path), data)
        wheel.writestr(str(record), "".join(lines) + f"{record},,\n")


def tree(folder: Path, place: str) -> Iterator[tuple[str, str]]:
    """The files below a folder, and where they go."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if name not in LEFT_OUT and not name.startswith("config-")
        ]
        for name in names:
            path = Path(parent) / name
            if path.exists() and path.suffix != ".a":
                yield f"{place}/{path.relative_to(folder)}", str(path)


def python_image(folder: Path) -> str:
    """A stand-in for python:3.12-slim: this interpreter, pip, and as wheels what requirements.txt
    asks for.
    """
    packages = sorted(
        closure((ROOT / "requirements.txt").read_text().split()), key=lambda one: one.name
    )
    state = [
        sys.version,
        Path(__file__).read_text(),
        *(f"{one.name}=={one.version}" for one in packages),
    ]
    tag = "tbmon-test/python:" + hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    if docker("images", "--quiet", tag):  # made by an earlier run
        return tag
    for one in packages:
        make_wheel(one, folder)
    library, binary = Path(sysconfig.get_path("stdlib")), os.path.realpath(sys.executable)
    pip = Path(str(metadata.distribution("pip").locate_file("pip")))
    script = folder / "pip"
    script.write_text('#!/bin/sh\nPYTHONPATH=/opt/pip exec python -m pip "$@"\n')
    script.chmod(0o755)
    files = dict(tree(library, str(library)))
    extensions = [name for name in files.values() if name.endswith(".so")]
    files |= {path: path for path in libraries([binary, *extensions])}
    files |= dict(tree(pip, "/opt/pip/pip"))
    files |= {f"/opt/wheels/{wheel.name}": str(wheel) for wheel in folder.glob("*.whl")}
    files |= {"/usr/local/bin/pip": str(script), f"{sys.base_prefix}/bin/python": binary}
    path = (
        f"ENV PATH={sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin PYTHONHOME={sys.base_prefix}"
    )
    return make(tag, (), files.items(), path, "ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/wheels")


def tbmon_image(folder: Path) -> str:
    """The shipped Dockerfile, built on that."""
    words = ("--build-arg", f"PYTHON={python_image(folder)}", "--build-arg", "VERSION=0.0.1")
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    tag = f"tbmon-test/tbmon:{os.getpid()}"
    built = ("docker", "build", "--quiet", "--network", "none", *words, "--tag", tag, str(ROOT))
    done = subprocess.run(built, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return tag


def program_image(name: str, *changes: str) -> str:
    """An image that runs a program of this machine, made anew when that changes."""
    binary = command(name)
    tag = f"tbmon-test/{name}:" + hashlib.sha256(Path(binary).read_bytes()).hexdigest()[:16]
    if docker("images", "--quiet", tag):
        return tag
    return make(tag, (binary,), (), f'ENTRYPOINT ["{binary}"]', *changes)


def haproxy_image() -> str:
    return program_image("haproxy", 'CMD ["-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]')


def nats_image() -> str:
    return program_image("nats-server")
