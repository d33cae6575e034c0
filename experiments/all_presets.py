"""`make presets`: every preset on the bundled models; stores, figures and a summary under results/presets."""

from __future__ import annotations

from pathlib import Path

from demo import report, run_all

import vlm_patching as vp

OUT = Path("results/presets")

if __name__ == "__main__":
    report(*run_all(vp.presets(), OUT), OUT)
