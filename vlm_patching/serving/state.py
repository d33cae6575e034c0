"""What is kept on disk of a running server, so that any process can stop it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from vlm_patching.errors import SpecError
from vlm_patching.serving.processes import Service, members

FILE_NAME = "server.json"


@dataclass(frozen=True)
class State:
    """A running server.

    Attributes
    ----------
    host
        What a client takes as NDIF_HOST.
    ray_folder
        Ray's own folder, which is nobody else's.
    model_keys
        Model → the key that the server knows it by.
    ports
        What listens → its port.
    services
        The processes.
    stopping
        Whether somebody is about to stop it.
    """

    host: str
    ray_folder: str
    model_keys: dict[str, str]
    ports: dict[str, int]
    services: list[Service]
    stopping: bool = False

    @property
    def runs(self) -> bool:
        """Whether anything is left of it."""
        return bool(members(service.pid for service in self.services if service.owns_session))


def read_state(folder: Path) -> State | None:
    """The server of a state folder, or None where there is none."""
    file = folder / FILE_NAME
    try:
        found = json.loads(file.read_text())
        return State(**{**found, "services": [Service(**service) for service in found["services"]]})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SpecError(f"{file} does not say what runs: {error}. Was it written by serve-ndif?") from error


def write_state(folder: Path, state: State) -> None:
    """Keep what runs; a reader sees the old state or the new one, never half of one."""
    draft = folder / f"{FILE_NAME}.new"
    draft.write_text(json.dumps(asdict(state), indent=2))
    draft.replace(folder / FILE_NAME)


def remove_state(folder: Path) -> None:
    """Forget a server that was stopped, and remove Ray's folder; logs stay."""
    state = read_state(folder)
    if state is not None:
        shutil.rmtree(state.ray_folder, ignore_errors=True)
        (folder / FILE_NAME).unlink()
