"""The virtual environment that an NDIF server runs in. vlm_patching is not in it: what a request needs must be shipped,
as with a server of others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from vlm_patching.errors import RunError, SpecError

STAMP = "vlm_patching.json"
"""The file in an environment that says what was installed; written last."""

NDIF = "ndif==0.1.2"
SAME_AS_HERE = ("torch", "nnsight", "transformers")
"""What has to be the same on both sides: the module tree and the numbers hang on it."""
DEPENDENCIES = (
    "accelerate==1.15.0",
    "anyio==4.13.0",  # later ones import late, stumble over nnsight's `object.save` then, and refuse what is over 1 MB
    "boto3==1.44.5",
    "click==8.5.1",
    "fastapi==0.165.0",
    "gunicorn==27.0.1",
    "moto[server]==5.2.5",
    "peft==0.21.2",
    "pillow==13.0.0",
    "pydantic==2.14.3",
    "python-dotenv==1.2.4",
    "python-multipart==0.0.34",
    "pyyaml==6.0.3",
    "ray[default]==2.60.0",
    "redis==8.1.0",
    "uvicorn[standard]==0.54.0",
    "zstandard==0.25.0",
)
PROGRAMS = ("gunicorn", "moto_server", "ndif", "python", "ray")


def requirements() -> list[str]:
    """What is installed, in exact versions; torch, nnsight and transformers in those of this process."""
    same = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in SAME_AS_HERE]
    return [*same, *DEPENDENCIES, NDIF]


def default_environment() -> Path:
    """Where the environment is put if nobody says where."""
    versions = "-".join(metadata.version(name).partition("+")[0] for name in SAME_AS_HERE)
    return Path.home() / ".cache" / "vlm_patching" / f"{NDIF.replace('==', '-')}-{versions}"


def is_complete(environment: Path) -> bool:
    """Whether an environment has all that is required."""
    try:
        found = json.loads((environment / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return bool(found == {"requirements": requirements()})


def require_environment(environment: Path) -> None:
    """Raise a `SpecError` if a folder is not an environment that a server can start from."""
    missing = [name for name in PROGRAMS if not (environment / "bin" / name).exists()]
    if missing:
        raise SpecError(
            f"{environment} is not an environment with an NDIF server: bin/{missing[0]} is missing. "
            "`vlm-patching serve-ndif` builds one, about 2 GB, at the folder that --environment names."
        )


def build_environment(environment: Path, report: Callable[[str], None] = print) -> None:
    """Make the environment, or complete one; nothing is done where it is complete.

    Takes some minutes and about 2 GB (more where pip's index has torch with CUDA only).

    Raises
    ------
    SpecError
        The folder holds something else.
    RunError
        A step failed.
    """
    if is_complete(environment):
        return
    if environment.exists() and any(environment.iterdir()) and not (environment / "pyvenv.cfg").exists():
        raise SpecError(f"{environment} holds something that is not a virtual environment; name another folder.")
    python = environment / "bin" / "python"
    if not python.exists():
        report(f"Making a virtual environment for the NDIF server in {environment}.")
        _run([sys.executable, "-m", "venv", str(environment)])
    torch, *others = [requirement for requirement in requirements() if requirement != NDIF]
    report("Installing its packages; this takes some minutes.")
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    _run([*pip, torch])  # first, so that the build it comes in is settled before others are resolved
    _run([*pip, *others])
    # it asks for a newer Python than it needs, and for packages that only other ways to run it need
    _run([*pip, "--no-deps", "--ignore-requires-python", NDIF])
    (environment / STAMP).write_text(json.dumps({"requirements": requirements()}, indent=2))


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RunError(f"{command[0]} could not be run: {error}.") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
        raise RunError(f"`{' '.join(command[:6])} ...` failed while the NDIF server's environment was made:\n{tail}")
