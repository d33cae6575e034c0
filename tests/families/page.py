"""Writes docs/models.md out of what the tests of families found: `python -m tests.families.page RESULTS.xml`."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
COLUMNS = {
    "test_every_site_is_that_of_plain_hooks": "sites, heads",
    "test_entries_are_those_of_plain_hooks": "embeddings",
    "test_image_positions_are_where_the_family_has_them": "positions",
    "test_everything_that_is_reused_changes_nothing": "engine",
    "test_knockout_is_that_of_plain_hooks": "knockout",
    "test_attention_patterns_are_those_of_eager_attention": "patterns",
    "test_the_lens_ends_in_the_models_own_logits": "lens",
    "test_answers_of_several_tokens_are_given_behind_the_prompt": "whole answers",
}
HEAD = """# Models

Written by `make test-families` out of what its tests found; not by hand.

A row is a model that the tests build: a small random one of the real transformers class, with the family's real
processor. **yes** means that it was proven on it:

- **sites, heads**: every component of every layer and stack, and heads, patched at several positions, give what a
  forward pass with plain PyTorch hooks gives (within 1e-4 in the logit difference);
- **embeddings**: so do `image_embeds` and `token_embeds`;
- **positions**: which positions are image, of which picture, tile, row and column, and which box of the picture they
  show, for three shapes of pictures and, where the family takes them, two pictures in a prompt;
- **engine**: windows, spans, noise and ablation give in the fast engine what one forward pass a cell gives;
- **knockout**, **patterns**: blocked edges, and attention probabilities, are those of plain hooks;
- **lens**: the last layer read through the final norm and the unembedding is the model's own output;
- **whole answers**: answers of several tokens, teacher-forced, have the probability that token after token gives.

A dash is something that the family does not have, or that is not supported; the reason stands below.
"""


def page(results: Path) -> str:
    """The page, from pytest's results as JUnit XML."""
    outcomes: dict[str, dict[str, str]] = {}
    known: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        test, _, parameters = case.get("name", "").rstrip("]").partition("[")
        if not case.get("classname", "").endswith("test_families") or not parameters:
            continue
        family = _family(case.get("name", ""))
        outcomes.setdefault(family, {})[test] = _worse(outcomes.get(family, {}).get(test, "yes"), _outcome(case))
        known.setdefault(family, {}).update(
            {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        )
    lines = [HEAD, "| model | class | stacks | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---" * (3 + len(COLUMNS)) + "|")
    reasons: dict[str, list[str]] = {}
    for family, found in sorted(outcomes.items()):
        cells = []
        for test, column in COLUMNS.items():
            outcome = found.get(test, "was not run")
            cells.append("yes" if outcome == "yes" else "–")
            if outcome != "yes":
                reasons.setdefault(f"{column}: {outcome}", []).append(family)
        about = known[family]
        lines.append(f"| {family} | `{about.get('class', '')}` | {about.get('stacks', '')} | {' | '.join(cells)} |")
    lines += ["", "## What the engine reuses", "", "| model | family's file | image | reused |", "|---|---|---|---|"]
    for family, about in sorted(known.items()):
        lines.append(f"| {family} | {about.get('file', '')} | {about.get('image', '')} | {about.get('reuses', '')} |")
    lines += ["", "## Why not", ""]
    lines += [f"- {reason} ({', '.join(families)})" for reason, families in sorted(reasons.items())]
    return "\n".join([*lines, "", *_refused()])


def _family(name: str) -> str:
    """The model of a test, which is the first of its parameters or the only one."""
    from tests.families import all_known

    inside = name.partition("[")[2].rstrip("]")
    return max((known for known in all_known() if inside == known or known in inside.split("-")), key=len)


def _outcome(case: ElementTree.Element) -> str:
    skipped = case.find("skipped")
    if skipped is not None:
        return str(skipped.get("message", "skipped"))
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "yes"


def _worse(one: str, other: str) -> str:
    return other if one == "yes" else one


def _refused() -> list[str]:
    from vlm_patching.models.families import REFUSED

    return ["## Refused", "", *[f"- `{kind}`: {why}." for kind, why in sorted(REFUSED.items())], ""]


if __name__ == "__main__":
    PAGE.write_text(page(Path(sys.argv[1])), encoding="utf-8")
    print(PAGE)
