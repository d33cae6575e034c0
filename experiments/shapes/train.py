"""Train the two bundled models from nothing:  python experiments/shapes/train.py

The loss is on the answer; beside it, while training, a linear probe that is thrown away afterwards must read off each
patch's image embedding what lies there and where it is, which gives the language side something to bind early on.
Every step sees fresh pictures, so there is no training set to fit. Checkpoints are written as it goes; a run that is
killed continues where it was when the same command is given again. Each model runs on one thread in a process of its
own.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import torch
from build import PIXEL_MEAN, PIXEL_STD, build
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from vlm_patching.pairs.shapes import GRID, KINDS, Scene, render, sample
from vlm_patching.pairs.shapes.scene import COLORS, SHAPES, SIZES

NAMES = ("shapes-blip", "shapes-llava")
MODELS = Path(__file__).parents[2] / "vlm_patching" / "models" / "bundled"
WEIGHTS = {"relation": 2.0, "place": 1.2, "size": 0.7, "size_choice": 0.7, "count": 2.0}
LEARNING_RATE = {"shapes-blip": 1.5e-3, "shapes-llava": 2e-3}
BATCH, WARMUP, SAVE_EVERY, PROBE_WEIGHT = 128, 300, 500, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"models to train: {', '.join(NAMES)}")
    parser.add_argument("--steps", type=int, default=7_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoints", type=Path, default=Path("results/training"))
    parser.add_argument("--out", type=Path, default=MODELS)
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in NAMES:
            parser.error(f"unknown model {name!r}; known: {', '.join(NAMES)}")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train, args=(name, i, arguments)) for i, name in enumerate(arguments.names)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [name for name, worker in zip(arguments.names, workers, strict=True) if worker.exitcode]
    if failed:
        raise SystemExit(f"training failed: {', '.join(failed)}")


def train(name: str, bar_position: int, arguments: argparse.Namespace) -> None:
    """Train one model and save it in transformers' folder format."""
    torch.set_num_threads(1)
    parent = os.getppid()
    model, processor = build(name, arguments.seed)
    model.to(arguments.device).train()
    forward = _blip_loss if name == "shapes-blip" else _llava_loss
    peak, steps = LEARNING_RATE[name], arguments.steps
    probe = Probe(model.config.vision_config.hidden_size).to(arguments.device)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *probe.parameters()], lr=peak, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1, (s + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1, s / steps)))
    )
    checkpoint = arguments.checkpoints / f"{name}.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=arguments.device, weights_only=True)
        model.load_state_dict(state["model"])
        probe.load_state_dict(state["probe"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    log = (arguments.checkpoints / f"{name}.jsonl").open("a") if _make(arguments.checkpoints) else None
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, position=bar_position, mininterval=2)
    tally: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for step in bar:
        if os.getppid() != parent:
            raise SystemExit("the command that started this worker is gone")
        rng = random.Random(f"{arguments.seed}/{name}/{step}")
        kinds = rng.choices(KINDS, weights=[WEIGHTS.get(kind, 1.0) for kind in KINDS], k=BATCH)
        scenes, questions = zip(*(sample(rng, kind) for kind in kinds), strict=True)
        pictures = np.stack([np.asarray(render(scene)) for scene in scenes])
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(arguments.device).float() / 255
        pixels = (pixels - PIXEL_MEAN) / PIXEL_STD
        texts, answers = [q.text for q in questions], [q.answer for q in questions]
        loss, correct, embeds = forward(model, processor, pixels, texts, answers)
        aside = probe(embeds, torch.tensor([_contents(scene) for scene in scenes], device=arguments.device))
        optimiser.zero_grad(set_to_none=True)
        (loss + PROBE_WEIGHT * aside).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        for kind, right in zip(kinds, correct.tolist(), strict=True):
            tally[kind].append(right)
        if (step + 1) % 100 == 0:
            share = {kind: round(float(np.mean(right)), 3) for kind, right in tally.items() if right}
            tally = {kind: [] for kind in KINDS}
            bar.set_postfix(probe=f"{aside.item():.3f}", loss=f"{loss.item():.3f}", worst=f"{min(share.values()):.2f}")
            if log:
                log.write(
                    json.dumps(
                        {"step": step + 1, "loss": round(loss.item(), 4), "probe": round(aside.item(), 4), **share}
                    )
                    + "\n"
                )
                log.flush()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            parts = {"model": model, "probe": probe, "optimiser": optimiser, "schedule": schedule}
            state = {part: value.state_dict() for part, value in parts.items()}
            torch.save({**state, "step": step + 1}, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
    folder = arguments.out / name
    model.eval().cpu().save_pretrained(folder)
    build(name)[1].save_pretrained(folder)  # the one trained with remembers how it padded


class Probe(nn.Module):
    """Linear read-outs of every patch: shape, colour and size of what lies there (or nothing), row, column."""

    CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, GRID, GRID)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, classes) for classes in self.CLASSES)

    def forward(self, embeds: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy; embeds [picture, patch, width], contents [picture, patch, attribute]."""
        losses = [
            functional.cross_entropy(head(embeds).flatten(0, 1), contents[..., i].flatten())
            for i, head in enumerate(self.heads)
        ]
        return torch.stack(losses).sum()


def _contents(scene: Scene) -> list[list[int]]:
    """What the probe must say of each patch."""
    patches = [[0, 0, 0, row, col] for row in range(GRID) for col in range(GRID)]
    for thing in scene.things:
        words = SHAPES.index(thing.shape), list(COLORS).index(thing.color), list(SIZES).index(thing.size)
        patches[thing.row * GRID + thing.col][:3] = [word + 1 for word in words]
    return patches


def _make(folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return True


def _blip_loss(
    model: PreTrainedModel, processor: ProcessorMixin, pixels: torch.Tensor, texts: list[str], answers: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss on the answer and its end mark, which answers were right, and the patches' image embeddings.

    BLIP's decoder does not mask the question's padding, so the encoder's states are gathered by length: each question
    reaches the decoder without padding.
    """
    tokenizer = processor.tokenizer
    question = tokenizer(texts, padding=True, return_tensors="pt").to(pixels.device)
    answer = tokenizer(answers, add_special_tokens=False, return_tensors="pt").input_ids.to(pixels.device)
    text = model.config.text_config
    start = torch.full_like(answer, text.bos_token_id)
    labels = torch.cat([answer, torch.full_like(answer, text.sep_token_id)], 1)
    image = model.vision_model(pixel_values=pixels).last_hidden_state
    encoded = model.text_encoder(
        input_ids=question.input_ids, attention_mask=question.attention_mask, encoder_hidden_states=image
    ).last_hidden_state
    lengths = question.attention_mask.sum(1)
    losses, correct = [], torch.zeros(len(texts), dtype=torch.bool)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        logits = model.text_decoder(
            input_ids=torch.cat([start, answer], 1)[rows], encoder_hidden_states=encoded[rows, :length]
        ).logits
        losses.append(functional.cross_entropy(logits.flatten(0, 1), labels[rows].flatten(), reduction="sum"))
        correct[rows.cpu()] = (logits[:, 0].argmax(-1) == answer[rows, 0]).cpu()
    return torch.stack(losses).sum() / labels.numel(), correct, image[:, 1:]


def _llava_loss(
    model: PreTrainedModel, processor: ProcessorMixin, pixels: torch.Tensor, texts: list[str], answers: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss on the answer and its end mark, which answers were right, and the patches' image embeddings."""
    marks = processor.image_token * model.config.image_seq_length
    prompts = [f"USER: {marks}\n{text} ASSISTANT: {answer}</s>" for text, answer in zip(texts, answers, strict=True)]
    inputs = processor.tokenizer(prompts, padding=True, return_tensors="pt").to(pixels.device)
    output = model(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values=pixels, logits_to_keep=3
    )
    logits = output.logits
    labels = inputs.input_ids[:, -2:]
    loss = functional.cross_entropy(logits[:, :2].flatten(0, 1), labels.flatten())
    embeds = output.image_hidden_states.unflatten(0, (len(texts), -1))
    return loss, (logits[:, 0].argmax(-1) == labels[:, 0]).cpu(), embeds


if __name__ == "__main__":
    main()
