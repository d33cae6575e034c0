"""Write docs/datasets/shapes.md and its picture: a pair of every kind, and what the bundled models make of each kind.

python experiments/shapes/pairs_page.py
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from evaluate import answer
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm
from train import MODELS, NAMES

import vlm_patching as vp
from vlm_patching.models import describe_model
from vlm_patching.pairs.shapes import IMAGE_SIZE, PAIR_KINDS

PAGE = Path(__file__).parents[2] / "docs" / "datasets" / "shapes.md"
PICTURE = PAGE.with_suffix(".png")
ASKED_SEED = 1_000
COLUMNS, SCALE, GAP, LINE = 3, 2, 8, 17
CONJUNCTION = "removal, 2 constraints"
Said = Mapping[str, Sequence[str]]
"""Kind → a model's answers."""
TEXT = """# shapes: scenes that are drawn

Two to five things of 8 shapes, 8 colours and 2 sizes on a grid of 4 × 4 cells, 96 × 96 pixels; nothing to download.

```yaml
pairs: {{dataset: shapes, n: 64, seed: 0, questions: [count, removal]}}
```

The corrupted picture differs from the clean one in one factor, which the kind of question names. Pairs are made that
way: the scene, a list of things, is copied with that one change, nothing lies over anything else, and every pixel
outside of what changed is equal. The foil is the right answer to the corrupted picture (in `stroop_word` it is what is
written there). The corrupted text is the clean one, but in `color_choice`, `shape_choice` and `place`, where two other
options stand in it (symmetric token replacement). Same seed, same pairs; the first m of n pairs are those that n = m
gives.

![A pair of every kind](shapes.png)

Under each kind its question, answer / foil; left the clean picture with its regions, right the corrupted one. This
page and its picture are written by `experiments/shapes/pairs_page.py`.

| option | |
|---|---|
| `questions` | kinds, taken in turn; `[color_choice]` where not given. Each is a `task` of the results |
| `aligned` | `true`, where not given: only a kind's shortest questions, so that a token index means the same in each |
| `constraints` | 1 or 2: only questions that name the thing by so many attributes ({constrained}) |
| `answers` | `number`, where not given, or `yes_no`: how {existence} are asked |

## Kinds

The last columns say how often the bundled models answer right, out of {each} clean pictures (aligned pairs, seed
{seed}). With `keep: clean_correct` those pairs are swept; with `keep: all` every kind runs on them.

| `questions` | a question, answer / foil | what differs | spans beside `subject` | regions beside `object` | {names} |
|---|---|---|---|---|{rules}|
{kinds}

`color` to `size_choice` and `removal` have the spans `constraint`, and `constraint_1` and `constraint_2`, where
`constraints` is given.

**Counting, removal.** In `count` there is one thing more or one thing less of what is counted. In `removal` the thing
that is asked about is the only one of its name, and one of the two pictures lacks it: half of the pairs are clean with
it (answer 1), half without (answer 0); `image:object` is where it is or would be.

**Relations.** In `relation` a thing moves to the other side of another one. Since it must find room there, the other
one never lies at that edge of the picture, and the half that the thing is in gives the answer away. `relation_swap`
does without: the two change places, so that the same things are there and the same cells are taken, and one thing's row
or column is enough in 10 of 12 cases. It shows that the bundled models know only the half: what they answer is what the
half says in {halves}, and right in {swapped}. In `agreement` one of the two moves, either as often as the other.

**Complex concepts** (`and`, `or`, `xor`, `not` of attributes, as in ShapeWorld). One picture satisfies the concept, by
one thing, the other does not; an attribute of that thing differs. The other things fail it in every way there is: for
"yellow and circles" there are always a yellow thing that is no circle, a circle that is not yellow, and one that is
neither. As often as not the clean picture is the one that satisfies it. The bundled models know neither the words
"and", "not", "but", "both" nor such questions, nor those of `agreement`: they are right in {concepts}, where always
saying 1 is right in half. They do not bind two words to one thing either: with `constraints: 2` they are right in
{conjunctions} of `removal`.

**Words in the picture** (after Stroop). A colour's name is written as near to the thing as there is room, in a font of
pillow's own, which no font of the machine replaces. In `stroop_word` the clean picture names the thing's colour and the
corrupted one another; the right answer stays, and how far the word pulls the model to the foil is the total effect. In
`stroop_color` the word contradicts the thing in the clean picture, and the thing takes on the colour that is written.
Letters are grey, which is no answer. The bundled models cannot read: the other word changes {moved} of their answers,
to what is written in {read}.

**Relatedness** (as in COOCO, Merlo et al. 2025). The thing becomes one whose shape none of the other things has
(`low`), or one of them (`middle`), or three of four (`high`). Loaded one by one with the same seed, the three have the
same clean pictures and questions, and only the foils differ.

## Yes or no

A model that knows the words can be asked by yes or no. The bundled ones do not know them: an answer that is no token of
a model is refused.

| `questions` | `answers: number`, 1 or 0 | `answers: yes_no` |
|---|---|---|
{wordings}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=500, help="pairs of each kind that the models are asked about")
    each = parser.parse_args().each
    torch.set_num_threads(1)
    PAGE.parent.mkdir(exist_ok=True)
    contact_sheet(examples()).save(PICTURE, optimize=True)
    asked = {kind: vp.load_pairs("shapes", n=each, seed=ASKED_SEED, questions=[kind]) for kind in PAIR_KINDS}
    asked[CONJUNCTION] = vp.load_pairs("shapes", n=each, seed=ASKED_SEED, questions=["removal"], constraints=2)
    text = page(asked, *(answers_of(name, asked) for name in NAMES))
    PAGE.write_text("\n\n".join(map(_wrapped, text.split("\n\n"))))
    print(f"{PAGE}, {PICTURE} ({PICTURE.stat().st_size / 1000:.0f} kB)")


def examples(**options: Any) -> dict[str, vp.Pair]:
    """A pair of every kind that has the options; of one seed where kinds are levels of one thing."""
    seeds = {kind: 0 if kind.startswith("relatedness") else 1 + i for i, kind in enumerate(PAIR_KINDS)}
    kinds = [kind for kind, made in PAIR_KINDS.items() if not options or made.fewest_words_yes_no]
    return {kind: vp.load_pairs("shapes", n=1, seed=seeds[kind], questions=[kind], **options)[0] for kind in kinds}


def answers_of(name: str, asked: Mapping[str, Sequence[vp.Pair]]) -> tuple[Said, Said]:
    """What a model says to the clean pictures and to the corrupted ones."""
    model = vp.load_model(describe_model(str(MODELS / name)))
    clean, corrupted = {}, {}
    for kind, pairs in tqdm(asked.items(), desc=name):
        texts = [pair.clean.text for pair in pairs]
        clean[kind] = answer(model, [pair.clean.picture() for pair in pairs], texts)
        corrupted[kind] = answer(model, [pair.corrupted.picture() for pair in pairs], texts)
    return clean, corrupted


def page(asked: Mapping[str, Sequence[vp.Pair]], *said: tuple[Said, Said]) -> str:
    """The page, in Markdown."""
    right = [{kind: _share(clean[kind], [p.answer for p in asked[kind]]) for kind in asked} for clean, _ in said]
    swap = asked["relation_swap"]
    halves = [_share(clean["relation_swap"], list(map(_half, swap))) for clean, _ in said]
    unknown = [shares[kind] for shares in right for kind in ("agreement", "and", "or", "xor", "not")]
    read = [_share(other["stroop_word"], [p.foil for p in asked["stroop_word"]]) for _, other in said]
    if min(halves) < 0.98 or max(unknown) > 0.7 or max(read) > 0.05:
        raise SystemExit(f"what the page says of the bundled models is not so: {halves}, {unknown}, {read}")
    return TEXT.format(
        each=len(swap),
        seed=ASKED_SEED,
        names=" | ".join(NAMES),
        rules="---|" * (len(NAMES) - 1) + "---",
        constrained=", ".join(f"`{kind}`" for kind, made in PAIR_KINDS.items() if made.constrained),
        existence=", ".join(f"`{kind}`" for kind, made in PAIR_KINDS.items() if made.fewest_words_yes_no),
        kinds="\n".join(_row(kind, pair, [shares[kind] for shares in right]) for kind, pair in examples().items()),
        halves=_both(halves),
        swapped=_both(shares["relation_swap"] for shares in right),
        concepts=f"{min(unknown):.1%} to {max(unknown):.1%}",
        conjunctions=_both(shares[CONJUNCTION] for shares in right),
        moved=_both(1 - _share(clean["stroop_word"], corrupted["stroop_word"]) for clean, corrupted in said),
        read=_both(read),
        wordings="\n".join(
            f"| `{kind}` | {number.clean.text} | {yes_no.clean.text} |"
            for kind, yes_no in examples(answers="yes_no").items()
            for number in [examples()[kind]]
        ),
    )


def _row(kind: str, pair: vp.Pair, right: Sequence[float]) -> str:
    spans, regions = (
        ", ".join(f"`{name}`" for name in named) for named in (_beside(pair.spans), _beside(pair.regions))
    )
    question = f"{pair.clean.text} {pair.answer} / {pair.foil}"
    shares = " | ".join(f"{share:.1%}" for share in right)
    return f"| `{kind}` | {question} | {PAIR_KINDS[kind].changes} | {spans} | {regions} | {shares} |"


def _beside(places: Mapping[str, Any]) -> list[str]:
    return [name for name in places if name not in ("subject", "object")]


def _share(words: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(words, wanted, strict=True)) / len(words)


def _both(shares: Any) -> str:
    return " and ".join(f"{share:.1%}" for share in shares)


def _wrapped(paragraph: str) -> str:
    """A paragraph of prose in lines of 120 letters; anything else as it is."""
    if paragraph.startswith(("#", "|", "!", "```")):
        return paragraph
    end = "\n" * paragraph.endswith("\n")
    return textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False, break_on_hyphens=False) + end


def _half(pair: vp.Pair) -> str:
    """What the half of the picture that the thing lies in says of a relation."""
    x0, y0, x1, y1 = pair.regions["object"]
    if pair.answer in ("left", "right"):
        return "left" if x0 + x1 < IMAGE_SIZE else "right"
    return "above" if y0 + y1 < IMAGE_SIZE else "below"


def contact_sheet(shown: Mapping[str, vp.Pair]) -> Image.Image:
    """Clean and corrupted picture of a pair of every kind, with its regions, question, answer and foil."""
    side = SCALE * IMAGE_SIZE
    width, height = 2 * side + 3 * GAP, side + 2 * LINE + GAP
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(shown) // COLUMNS) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (kind, pair) in enumerate(shown.items()):
        x, y = GAP + i % COLUMNS * width, i // COLUMNS * height
        draw.text((x, y), kind, fill="black", font=font, stroke_width=0.4)
        draw.text((x, y + LINE), f"{pair.clean.text}  {pair.answer} / {pair.foil}", fill="black", font=font)
        for j, prompt in enumerate((pair.clean, pair.corrupted)):
            picture = prompt.picture().resize((side, side), Image.Resampling.NEAREST)
            if prompt is pair.clean:
                _outline(picture, pair.regions.values())
            sheet.paste(picture, (x + j * (side + GAP), y + 2 * LINE))
    return sheet.quantize(256, kmeans=3, dither=Image.Dither.NONE)  # median cut alone mixes rare colours


def _outline(picture: Image.Image, boxes: Any) -> None:
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in boxes:
        edges = (SCALE * x0 - 2, SCALE * y0 - 2, SCALE * x1 + 1, SCALE * y1 + 1)
        draw.rectangle(edges, outline=(110, 110, 110))


if __name__ == "__main__":
    main()
