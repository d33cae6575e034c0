"""Measure the bundled models on pictures they have never seen, and write their model cards:

    python experiments/shapes/evaluate.py

Next to each model: what the words alone give (for every question text, the answer that is most frequent to it), what a
picture alone could give at most (for every scene, its most frequent answer over all questions that can be asked about
it), and the model itself with the picture of another example.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from build import build
from tqdm import tqdm
from train import MODELS, NAMES

from vlm_patching.models import describe_model, load_model
from vlm_patching.pairs.shapes import KINDS, Question, Scene, ask, render, sample

BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--each", type=int, default=500, help="held-out pictures for each kind of question")
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    held_out = {kind: _draw("held-out", kind, arguments.each) for kind in KINDS}
    blind = {
        "words alone": _words_alone(held_out),
        "chance": {kind: _chance(kind) for kind in KINDS},
        "picture alone, at most": _picture_alone(),
    }
    for name in arguments.names:
        folder = arguments.models / name
        result = {
            "images": arguments.each * len(KINDS),
            "accuracy": accuracy(folder, held_out),
            "picture of another example": accuracy(folder, held_out, shuffle_pictures=True),
            **blind,
        }
        (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
        (folder / "README.md").write_text(_card(name, folder, result))
        print(json.dumps({name: result["accuracy"]}, indent=2))


def accuracy(
    folder: Path | str, examples: dict[str, list[tuple[Scene, Question]]], shuffle_pictures: bool = False
) -> dict[str, float]:
    """Share of right first answers for each kind of question, through the model's real processor."""
    model = load_model(describe_model(str(folder)))
    shares = {}
    for kind, asked in tqdm(examples.items(), desc=f"{Path(folder).name}{', shuffled' if shuffle_pictures else ''}"):
        pictures = [render(scene) for scene, _ in asked]
        if shuffle_pictures:
            pictures = pictures[1:] + pictures[:1]
        right = 0
        for start in range(0, len(asked), BATCH):
            part = slice(start, start + BATCH)
            questions = [question for _, question in asked[part]]
            answers = answer(model, pictures[part], [question.text for question in questions])
            right += sum(a == q.answer for a, q in zip(answers, questions, strict=True))
        shares[kind] = round(right / len(asked), 4)
    return shares


def answer(model: Any, pictures: Sequence[Any], texts: Sequence[str]) -> list[str]:
    """The model's first word for each picture and question; questions of one length go through together, unpadded."""
    processor, module = model.description.processor, model.envoy._module
    blip = model.description.architecture.family.startswith("blip")
    words: list[str] = [""] * len(texts)
    by_length = defaultdict(list)
    for i, text in enumerate(texts):
        by_length[len(processor.tokenizer(text)["input_ids"])].append(i)
    for rows in by_length.values():
        prompts = [texts[i] if blip else f"USER: <image>\n{texts[i]} ASSISTANT:" for i in rows]
        inputs = processor(images=[pictures[i] for i in rows], text=prompts, return_tensors="pt")
        with torch.no_grad():
            if blip:
                start = torch.full((len(rows), 1), processor.tokenizer.bos_token_id)
                image = module.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
                states = module.text_encoder(input_ids=inputs["input_ids"], encoder_hidden_states=image)
                logits = module.text_decoder(input_ids=start, encoder_hidden_states=states.last_hidden_state).logits
            else:
                logits = module(**inputs, logits_to_keep=1).logits
        for i, token in zip(rows, logits[:, -1].argmax(-1).tolist(), strict=True):
            words[i] = processor.tokenizer.convert_ids_to_tokens(token)
    return words


def _draw(purpose: str, kind: str, number: int) -> list[tuple[Scene, Question]]:
    rng = random.Random(f"{purpose}/{kind}")
    return [sample(rng, kind) for _ in range(number)]


def _chance(kind: str, number: int = 20_000) -> float:
    """Accuracy of always giving the same answer: the most frequent one, or the first of two options."""
    if kind.endswith("choice") or kind in ("place", "relation"):
        return 0.5
    answers = Counter(question.answer for _, question in _draw("chance", kind, number))
    return round(answers.most_common(1)[0][1] / number, 4)


def _words_alone(held_out: dict[str, list[tuple[Scene, Question]]], number: int = 20_000) -> dict[str, float]:
    """Accuracy of the best guess from the question's text: its most frequent answer among other questions."""
    shares = {}
    for kind, asked in held_out.items():
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for _, question in _draw("words", kind, number):
            seen[question.text][question.answer] += 1
        overall = sum(seen.values(), Counter()).most_common(1)[0][0]
        guesses = [seen[q.text].most_common(1)[0][0] if q.text in seen else overall for _, q in asked]
        shares[kind] = round(sum(g == q.answer for g, (_, q) in zip(guesses, asked, strict=True)) / len(asked), 4)
    return shares


def _picture_alone(number: int = 400, questions: int = 60) -> float:
    """The most that anyone could get who sees the scene and not the question, which is of any kind."""
    rng = random.Random("picture")
    best = []
    for _ in range(number):
        scene, _ = sample(rng, rng.choice(KINDS))
        drawn = [ask(rng, scene, rng.choice(KINDS)) for _ in range(questions)]
        answers = Counter(question.answer for question in drawn if question)
        best.append(answers.most_common(1)[0][1] / answers.total())
    return round(sum(best) / len(best), 4)


def _card(name: str, folder: Path, result: dict[str, Any]) -> str:
    model, _ = build(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = (folder / "model.safetensors").stat().st_size / 2**20
    rows = "\n".join(
        f"| {kind} | {result['accuracy'][kind]:.1%} | {result['words alone'][kind]:.1%} | "
        f"{result['picture of another example'][kind]:.1%} | {result['chance'][kind]:.1%} |"
        for kind in KINDS
    )
    return f"""# {name}

A `{type(model).__name__}` of {parameters / 1e6:.2f} million parameters ({size:.1f} MiB, float32), trained from
nothing by `experiments/shapes/train.py` on pictures that `vlm_patching.pairs.shapes` draws: 2 to 5 things of 8
shapes, 8 colours and 2 sizes on a 4 × 4 grid. It answers nine kinds of question with one word. It is here to be
explained, not to be used.

Accuracy on {result["images"]:,} held-out pictures (`experiments/shapes/evaluate.py`), drawn
from seeds that training does not use:

| kind of question | model | words alone | model, another's picture | chance |
|---|---|---|---|---|
{rows}

*Words alone*: for every question text, the answer most frequent to it. *Chance*: always the answer most frequent to
that kind of question, or one of the two options. Someone who sees the picture and not the question is right at most
{result["picture alone, at most"]:.1%} of the time (the scene's most frequent answer over all questions about it).
"""


if __name__ == "__main__":
    main()
