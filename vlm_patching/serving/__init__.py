"""A real NDIF server on this machine: to run experiments remotely without an account, and to test what does."""

from vlm_patching.serving.environment import build_environment, default_environment
from vlm_patching.serving.loopback import Loopback, stop_server

__all__ = ["Loopback", "build_environment", "default_environment", "stop_server"]
