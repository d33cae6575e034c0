"""Model actors for an unmodified NDIF server on a machine without a GPU.

This file runs in the server's environment, where vlm_patching is not installed: the server imports it by the name in
NDIF_MODEL_IMPORT_PATH. Only where a model is placed is replaced here; the way of a request is the server's own.
"""

from __future__ import annotations

import gc
from typing import Any

import ray  # type: ignore[import-not-found]
from ndif.common.errors import RequestError  # type: ignore[import-not-found]
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment  # type: ignore[import-not-found]
from ndif.services.ray.sandbox import host  # type: ignore[import-not-found]
from ndif.services.ray.sandbox.model import SandboxHost  # type: ignore[import-not-found]
from nnsight.modeling.huggingface import HuggingFaceModel

# A sandbox drops all variables that are not listed there. Without these it would ask the hub for what is a local
# folder, and would not find the model classes that are not nnsight's own.
host.RUNNER_ENV = (*host.RUNNER_ENV, "PYTHONPATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class CpuDeployment(BaseModelDeployment):
    """The server's deployment of a model, on the CPU."""

    CACHEABLE = False

    def load_from_disk(self) -> HuggingFaceModel:
        self.gpu_mem_bytes_by_id: dict[int, int] = {}
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self) -> None:
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


@ray.remote(num_cpus=1, max_restarts=-1)
class TrustedActor(CpuDeployment):
    """Runs requests in the model's own process. One that asks for the sandbox is refused, since there is none."""

    def execute(self, request: Any) -> tuple[bytes, float]:
        if not request.trusted:
            raise RequestError(
                "This request asks for the sandbox, which this server has none of; start it with --sandboxed."
            )
        return super().execute(request)


@ray.remote(num_cpus=1, max_restarts=-1)
class SandboxedActor(SandboxHost, CpuDeployment):
    """Runs every request in the server's sandbox: what a public server does with a key that lacks the tag "trusted"."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open_pool()

    async def run(self, request: Any) -> None:
        request.trusted = False
        await super().run(request)

    def interrupt(self) -> None:
        if self.execution_sandbox is not None:
            self.execution_sandbox.stop()
        super().interrupt()

    def execute(self, request: Any) -> tuple[bytes, float | None]:
        return self.run_in_runner(request, None)
