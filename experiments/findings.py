"""`make findings`: every preset and a few runs more, then docs/findings.md: what the methods say, whether they agree.

Every number of the page is computed; a sentence that interprets numbers is checked against them, and where it is no
longer true the page is not written and the sentence is named. Stores under results/ are reused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from findings_agreement import AGREEMENT, methods
from findings_corruptions import corruptions
from findings_heads import heads
from findings_page import BLIP, LLAVA, PAGE, P, Runs, Section, bullet, num, prose
from findings_places import constraints, flow, lens_and_steering, tracing

import vlm_patching as vp

SECTIONS = (corruptions, tracing, constraints, flow, heads, lens_and_steering, methods)
HOW = """What the presets say about the two bundled models, and whether they say the same. `make findings` writes this
page: it computes every number, checks what is said of them, and stops where that no longer holds. Brackets are 95 %
bootstrap intervals over pairs (`vp.analysis.bootstrap`), each cell alone. A *share* is mean effect over mean total
effect, on the logit difference where nothing else is said. SIP is NOTICE's semantic image pair, STR its symmetric token
replacement. L2.H3 is head 3 of layer 2, both counted from 0; *last* is the last token of the prompt."""


def main() -> None:
    runs = Runs()
    for name in vp.presets():
        runs.preset(name)
    sections = [section(runs) for section in SECTIONS]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page([*sections, limits(runs)]))
    print(f"{PAGE}, and its figures in {PAGE.with_suffix('')}/")


def page(sections: Sequence[Section]) -> str:
    """The whole page in Markdown; at its head the findings, agreement first."""
    first = sorted(sections, key=lambda section: section.title != AGREEMENT)
    parts = ["# Findings", prose(HOW), "\n".join(bullet(text) for section in first for text in section.findings)]
    for number, section in enumerate(sections, start=1):
        parts += [f"## {number}. {section.title}", *section.body]
    return "\n\n".join(parts) + "\n"


def limits(runs: Runs) -> Section:
    """What the page does not show."""
    llava, blip = (runs.preset(f"notice2024_{name}_heads") for name in ("llava", "blip"))
    kept = [
        int(runs.preset(f"basu2024_{name}").attrs["examples_kept"])
        for name in ("single", "multi_first", "multi_second")
    ]
    sure = np.floor(1e5 * min(float(ds[f"{P}_clean"].mean()) for ds in (llava, blip))) / 1e5
    versions = json.loads(llava.attrs["versions"])
    used = ", ".join(
        f"{name} {versions[name].split('+')[0]}" for name in ("vlm_patching", "torch", "nnsight", "transformers")
    )
    points = (
        f"""Two small models ({LLAVA}, {BLIP}; {llava.sizes["layer"]} layers in the text stack, {llava.sizes["head"]}
        heads each), trained on drawn shapes and asked about drawn shapes. Where they differ from a paper, model,
        pictures, questions and the preset's stated deviations all differ from the paper's: this refutes nothing about
        large models.""",
        f"""{llava.sizes["example"]} pairs a preset, 24 a task in the universal heads, {min(kept)} to {max(kept)} in the
        constraints, all of one renderer and one seed. Intervals are over such pairs, of each cell alone and not of a
        whole map; an interval of [1.00, 1.00] says that all pairs agreed.""",
        """Max-T takes an effect to be as likely x as −x where there is none; skewed effects (section 5) make it find
        too much.""",
        f"""The models are sure (on colour questions the mean p of the right answer is {num(sure, 5)} or more), so that
        p hardly moves before the logit difference has changed sign: effects of single heads on p are near 0. Knockouts
        are given in percent of p, as in their paper.""",
        """Restoring one place cannot show what several places hold at once: every token of shapes-blip's encoder holds
        the answer, and no single head of it comes out strong.""",
        """The steering vectors were tried on the pairs that made them. Ranks of heads without effect are ranks of
        noise. A pointing ratio says where a head looks, over 16 patches of which one shows the thing.""",
        f"""Stores under results/ are reused as long as the experiment is the same, whatever has changed in the code:
        remove results/ to start anew. The heads of section 5 were run with {used}.""",
    )
    return Section("What this does not show", ("\n".join(bullet(point) for point in points),))


if __name__ == "__main__":
    main()
