"""A model on an NDIF server: is it there, does the server speak our protocol, and what will it not do."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.transformers import TransformersModel

from vlm_patching.backends.wire import Deployment, Server
from vlm_patching.errors import RunError, SpecError
from vlm_patching.graph import InterventionGraph, sites_of
from vlm_patching.models import Architecture, ModelDescription, bundled_models
from vlm_patching.models.load import without_name_warning
from vlm_patching.serving.deployment import STOCK_CLASS, WRAPPED_CLASSES

COMPARED = ("nnsight", "torch", "transformers")
WRAPPER_FOLDER = Path(__file__).parents[1] / "serving" / "wrappers"
READY = ("RUNNING", "DEPLOYING", "NOT_STARTED")


def find_deployment(server: Server, description: ModelDescription) -> Deployment:
    """A model as a server has it.

    Raises
    ------
    RunError
        The server does not have it; what it has is listed.
    SpecError
        No stock server can have it.
    """
    found = server.deployments()
    usable = [
        one for one in found if _is_model(one, description) and one.loader in (STOCK_CLASS, *WRAPPED_CLASSES.values())
    ]
    ready = sorted((one for one in usable if one.state in READY), key=lambda one: READY.index(one.state))
    if ready:
        return ready[0]
    model_class = description.architecture.model_class
    if model_class in WRAPPED_CLASSES:
        raise SpecError(
            f"{description.name!r} is a {model_class}, which belongs to no pipeline of transformers, and a stock NDIF "
            f"server such as {server.address} loads models by their pipeline. `vlm-patching serve-ndif "
            "--with-wrappers` starts one that can; or run it with --backend local."
        )
    if usable:
        raise RunError(f"{server.address} has {description.name!r}, but it is {usable[0].state}; try again later.")
    at = f" at revision {description.revision}" if description.revision else ""
    names = sorted({f"{one.repo} ({one.task or 'no task'})" for one in found})
    raise RunError(
        f"{server.address} has not deployed {description.name!r}{at}. It has: {', '.join(names) or 'no model at all'}."
    )


def _is_model(one: Deployment, description: ModelDescription) -> bool:
    if one.revision != (description.revision or "main"):
        return False
    if description.name in bundled_models():  # the server has its own folder of it
        return Path(one.repo).name == description.name
    return one.repo.lower() in (description.source.lower(), description.name.lower())


def client_envoy(description: ModelDescription, deployment: Deployment) -> HuggingFaceModel:
    """The model's tree without weights, as the server knows it."""
    with without_name_warning():
        if deployment.loader == STOCK_CLASS:
            return TransformersModel(
                description.source,
                task=deployment.task or None,
                revision=description.revision,
                processor=description.processor,
            )
        return wrapper_class(deployment.loader)(description.source, revision=description.revision)


def wrapper_class(path: str) -> type[HuggingFaceModel]:
    """The class that loads a model on servers which have it, under the name that they know it by."""
    module, _, name = path.rpartition(".")
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, WRAPPER_FOLDER / f"{module}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    found: type[HuggingFaceModel] = getattr(sys.modules[module], name)
    return found


def version_table(server: Server) -> list[dict[str, str]]:
    """Package, version here, version there, and what a difference means."""
    there = server.environment()
    rows = []
    for name in COMPARED:
        here, remote = metadata.version(name), there.get(name, "unknown")
        if _minor(here) == _minor(remote):
            means = "" if here == remote else "the same protocol"
        elif name == "nnsight":
            means = "another protocol: jobs cannot be sent"
        else:
            means = "numbers may differ in their last digits"
        rows.append({"package": name, "here": here, "server": remote, "difference": means})
    return rows


def refuse_versions(server: Server) -> dict[str, str]:
    """The server's versions; `RunError` where its protocol is another."""
    there = {row["package"]: row["server"] for row in version_table(server)}
    here, remote = metadata.version("nnsight"), there["nnsight"]
    if remote != "unknown" and _minor(here) != _minor(remote):
        raise RunError(
            f"{server.address} has nnsight {remote}, and here is {here}: they do not understand each other. Install "
            f"the server's: pip install 'nnsight=={remote}'."
        )
    return there


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def untrusted_reason(graph: InterventionGraph, architecture: Architecture) -> str:
    """What a graph needs that a sandbox refuses; "" where there is nothing."""
    if graph.estimate != "exact":
        return f"{graph.estimate} takes gradients"
    if graph.method == "attention" and any(architecture.attention(site)[1].eager for site in sites_of(graph)):
        return "attention patterns of this model are read by switching its attention to 'eager'"
    return ""


def refuse_untrusted(graph: InterventionGraph, architecture: Architecture, server: Server) -> None:
    """`SpecError` where a graph needs more than a sandbox gives, and a sandbox is what there is."""
    reason = untrusted_reason(graph, architecture)
    if reason and not server.is_trusted():
        raise SpecError(
            f"{reason}, which a sandboxed NDIF job may not do, and {server.address} runs this key's jobs in a sandbox. "
            "Use a key that is tagged 'trusted', a server of your own (`vlm-patching serve-ndif`), or --backend local."
        )
