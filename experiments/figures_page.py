"""`make figures`: docs/figures.md, every kind of figure with a picture of it, drawn from presets on the bundled models.

Stores under results/ are reused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from findings_page import LD, LLAVA, NOISE, SIP, STR, Runs, prose
from PIL import Image

import vlm_patching as vp
from vlm_patching.figures import FIGURES

PAGE = Path("docs/figures.md")
FOLDER = Path("docs/figures")
COLORS = 200
"""Of a picture: a palette keeps it small."""

HEAD = """Results become figures: `vp.plot` has a function for each kind, a Dataset and an optional `ax` in, `Axes` out
(an array of them where there are several panels). `make figures` draws this page's pictures and writes it."""

USE = """```sh
vlm-patching run zhang_nanda2023_sip -o sip.zarr
vlm-patching run zhang_nanda2023_str -o str.zarr
vlm-patching figures                                 # the kinds, and what can be said of each
vlm-patching plot sip.zarr -o figures/               # all that the experiment names; next to the store without -o
vlm-patching plot sip.zarr --figure lines --metric logit_difference --normalize -o lines.pdf
vlm-patching plot sip.zarr --other str.zarr --set site=language.resid_post --width double --format pdf
```

```python
import vlm_patching as vp

ds = vp.load_results("sip.zarr")
ax = vp.plot.heatmap(ds, "logit_difference", normalize=True)
vp.plot.save(ax, "heatmap.pdf")  # or png, svg, jpg; text stays text in PDF and SVG
vp.plot.draw(ds)  # all that the experiment names: name → figure
```

An experiment names its figures; numbers and hash do not depend on them. A name alone will do:

```yaml
figures:
  - lines
  - {figure: heatmap, metric: probability, layers: x, scale: metric}
```

Where none are named, a store is drawn as its method asks for."""

RULES = (
    """Colours are told apart by people who see colours otherwise. Maps of effects are blue and red, white at 0, with
    symmetric limits: red carries the answer. Every colour bar says quantity, unit and sign; what was not run is
    hatched.""",
    """Means are over the pairs that were kept, draws inside their pair. `normalize` divides mean effects by mean total
    effects. Bands and brackets are 95 % bootstrap intervals of the mean, over pairs.""",
    """Outlined cells stand out in a max-T permutation test over all cells of the figure (family-wise error 5 %):
    `heads` does so by itself, `heatmap` with `mark=True`; `mark` may also be an array of bool, as `universal` of
    `vp.analysis.universal_heads`.""",
    """Hundreds of single patches become a column for each region (`patches="regions"`), row (`rows`), one for all
    (`block`), or stay (`expanded`).""",
    """For print: `with vp.plot.style("single"):` (85 mm; `double` 178 mm, or inches; `title=False` leaves titles to the
    caption), letters of 7 points. No global setting of matplotlib is changed.""",
    """Words come from a `vp.plot.Labeller`: `labeller=vp.plot.Labeller({"language.mlp_out": "MLP"})`, or a subclass of
    it with methods of your own.""",
    """A new kind is a function in `vlm_patching/plots/` and a row in `vlm_patching/figures.py`.""",
)


@dataclass(frozen=True)
class Shown:
    """A picture of the page: how it is drawn, and the words under it."""

    name: str
    code: str
    of: str
    draw: Callable[[Runs], Any]
    inches: float = 4.4


def _patches(runs: Runs) -> Any:
    patch = {"sites": ["language.resid_post"], "positions": ["each:image"]}
    ds = runs.own("single_patches", LLAVA, "color_choice", corruption=SIP, patch=patch)
    return _over_picture(ds, vp.plot.image, metric=LD)


def _over_picture(ds: Any, plot: Callable[..., Any], **options: Any) -> Any:
    pair = next(pair for pair in vp.rebuild_pairs(ds) if pair.id == str(ds["example"].values[0]))
    return plot(ds, pair.id, pair.clean.picture(), boxes=pair.regions, **options)


def _corruptions(runs: Runs) -> Any:
    experiment = vp.Experiment.from_spec("zhang_nanda2023_sip", {"metrics": ["probability", LD]})
    noise = {**NOISE, "draws": 4}
    return vp.plot.corruptions(vp.diagnose(experiment, [noise, SIP, STR], model=runs.model(LLAVA)), LD)


PICTURES = {
    "heatmap": [
        Shown(
            "heatmap",
            'heatmap(ds, "logit_difference", normalize=True)',
            "answer_path_llava",
            lambda r: vp.plot.heatmap(r.preset("answer_path_llava"), LD, normalize=True),
        ),
        Shown(
            "heatmap_palit",
            'heatmap(ds, layers="x", scale="metric")',
            "palit2023",
            lambda r: vp.plot.heatmap(r.preset("palit2023"), layers="x", scale="metric"),
        ),
        Shown(
            "heatmap_notice",
            'heatmap(ds, layers="x", scale="minmax")',
            "notice2024_blip_modules_text",
            lambda r: vp.plot.heatmap(r.preset("notice2024_blip_modules_text"), layers="x", scale="minmax"),
        ),
    ],
    "heads": [
        Shown(
            "heads",
            'heads(ds, "logit_difference", normalize=True)',
            "notice2024_llava_heads_text",
            lambda r: vp.plot.heads(r.preset("notice2024_llava_heads_text"), LD, normalize=True),
        )
    ],
    "head_function": [
        Shown(
            "head_function",
            "head_function(ds)",
            "notice2024_llava_head_functions",
            lambda r: vp.plot.head_function(r.preset("notice2024_llava_head_functions")),
        )
    ],
    "universal_heads": [
        Shown(
            "universal_heads",
            'universal_heads(ds, "logit_difference", position="last")',
            "notice2024_llava_universal",
            lambda r: vp.plot.universal_heads(r.preset("notice2024_llava_universal"), LD, position="last"),
            6.0,
        )
    ],
    "lines": [
        Shown(
            "lines",
            'lines(ds, "logit_difference", normalize=True)',
            "answer_path_llava",
            lambda r: vp.plot.lines(r.preset("answer_path_llava"), LD, site="language.resid_post", normalize=True),
        )
    ],
    "knockout": [
        Shown(
            "knockout",
            "knockout(ds, window=3)",
            "zhang2024_flow_llava",
            lambda r: vp.plot.knockout(r.preset("zhang2024_flow_llava"), window=3),
        )
    ],
    "windows": [
        Shown(
            "windows",
            'windows(ds, position="last")',
            "basu2024_single",
            lambda r: vp.plot.windows(r.preset("basu2024_single"), position="last"),
            5.2,
        )
    ],
    "lens": [Shown("lens", "lens(ds)", "lens_llava", lambda r: vp.plot.lens(r.preset("lens_llava")))],
    "distribution": [
        Shown(
            "distribution",
            'distribution(ds, "logit_difference", normalize=True)',
            "notice2024_llava_heads",
            lambda r: vp.plot.distribution(r.preset("notice2024_llava_heads"), LD, normalize=True),
        )
    ],
    "compare": [
        Shown(
            "compare",
            'compare(ds, other, "logit_difference", site="language.resid_post", normalize=True)',
            "zhang_nanda2023_noise and zhang_nanda2023_sip",
            lambda r: vp.plot.compare(
                r.preset("zhang_nanda2023_noise"),
                r.preset("zhang_nanda2023_sip"),
                LD,
                site="language.resid_post",
                normalize=True,
            ),
            6.0,
        )
    ],
    "image": [
        Shown(
            "image",
            'image(ds, pair.id, pair.clean.picture(), metric="logit_difference", boxes=pair.regions)',
            "a sweep of `each:image` at language.resid_post",
            _patches,
        )
    ],
    "attention": [
        Shown(
            "attention",
            'attention(ds, pair.id, pair.clean.picture(), position="last", boxes=pair.regions)',
            "notice2024_llava_head_functions",
            lambda r: _over_picture(r.preset("notice2024_llava_head_functions"), vp.plot.attention, position="last"),
            5.6,
        )
    ],
    "corruptions": [
        Shown(
            "corruptions",
            'corruptions(vp.diagnose(experiment, [...]), "logit_difference")',
            "the pairs of zhang_nanda2023_sip",
            _corruptions,
            6.0,
        )
    ],
}


def main() -> None:
    runs = Runs()
    FOLDER.mkdir(parents=True, exist_ok=True)
    sections = [_section(name, runs) for name in FIGURES]
    rules = "\n".join(f"- {prose(rule)}".replace("\n", "\n  ") for rule in RULES)
    parts = ["# Figures", prose(HEAD), USE, "## What holds for all of them", rules, "## The kinds", *sections]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in FOLDER.glob("*.png"))
    print(f"{PAGE}, and {len(list(FOLDER.glob('*.png')))} pictures of {size / 1000:.0f} kB in {FOLDER}/")


def _section(name: str, runs: Runs) -> str:
    kind = FIGURES[name]
    facts = f"{kind.about[0].upper()}{kind.about[1:]}. Draws: {', '.join(kind.methods)}."
    if kind.follows:
        facts += f" In the form of {kind.follows}."
    if kind.pictures:
        facts += " Needs the example's picture, which a dataset does not hold: `vp.rebuild_pairs(ds)`."
    parts = [f"### {name}", prose(facts)]
    for shown in PICTURES[name]:
        path = FOLDER / f"{shown.name}.png"
        with vp.plot.style(shown.inches, points=7):
            vp.plot.save(shown.draw(runs), path, dpi=110)
        _shrink(path)
        parts.append(prose(f"`vp.plot.{shown.code}`, of {shown.of}:"))
        parts.append(f"![{kind.about}]({FOLDER.name}/{path.name})")
    return "\n\n".join(parts)


def _shrink(path: Path) -> None:
    """A palette in the place of millions of colours."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    main()
