"""`python -m vlm_patching` is `vlm-patching`."""

from vlm_patching.cli import main

main()
