"""Activation patching by plain hooks, one forward pass per cell.

Sites are named as in the method notes, ``"stack.component"`` or ``"image_embeds"``. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

Model = BlipForQuestionAnswering | LlavaForConditionalGeneration
Key = tuple[str, int | None]
Edit = tuple[str, str, int | None, int | None, Sequence[int] | None, Tensor]
Point = tuple[nn.Module, str]

BLIP_TEXT = {
    "resid_pre": ("", "input"),
    "resid_post": ("", "output"),
    "attn_out": ("attention.output.dense", "output"),
    "cross_attn_out": ("crossattention.output.dense", "output"),
    "mlp_out": ("output.dense", "output"),
    "attn_head": ("attention.output.dense", "input"),
    "attn_context": ("attention.output.dense", "input"),
    "cross_attn_head": ("crossattention.output.dense", "input"),
    "cross_attn_context": ("crossattention.output.dense", "input"),
    "mlp_neuron": ("output.dense", "input"),
    "attn_block_out": ("attention.output", "output"),
    "cross_attn_block_out": ("crossattention.output", "output"),
    "mlp_block_out": ("output", "output"),
}
BLIP_VISION = {
    "resid_pre": ("", "input"),
    "resid_post": ("", "output"),
    "attn_out": ("self_attn.projection", "output"),
    "mlp_out": ("mlp.fc2", "output"),
    "attn_head": ("self_attn.projection", "input"),
    "attn_context": ("self_attn.projection", "input"),
}
CLIP_VISION = {
    "resid_pre": ("", "input"),
    "resid_post": ("", "output"),
    "attn_out": ("self_attn.out_proj", "output"),
    "mlp_out": ("mlp.fc2", "output"),
    "attn_head": ("self_attn.out_proj", "input"),
    "attn_context": ("self_attn.out_proj", "input"),
}
LLAMA = {
    "resid_pre": ("", "input"),
    "resid_post": ("", "output"),
    "attn_out": ("self_attn.o_proj", "output"),
    "mlp_out": ("mlp.down_proj", "output"),
    "attn_head": ("self_attn.o_proj", "input"),
    "attn_context": ("self_attn.o_proj", "input"),
    "mlp_neuron": ("mlp.down_proj", "input"),
}
BLIP_STACKS = {
    "vision": ("vision_model.encoder.layers", BLIP_VISION),
    "question_encoder": ("text_encoder.encoder.layer", BLIP_TEXT),
    "answer_decoder": ("text_decoder.bert.encoder.layer", BLIP_TEXT),
}
LLAVA_STACKS = {
    "vision": ("model.vision_tower.encoder.layers", CLIP_VISION),
    "language": ("model.language_model.layers", LLAMA),
}


def stacks(model: Model) -> dict[str, tuple[str, dict[str, tuple[str, str]]]]:
    """Return stack -> (path of its layers, component -> (path inside a layer, side))."""
    if isinstance(model, BlipForQuestionAnswering):
        return BLIP_STACKS
    if isinstance(model, LlavaForConditionalGeneration):
        return LLAVA_STACKS
    raise TypeError(f"no oracle for {type(model).__name__}")


def all_sites(model: Model) -> list[str]:
    """Return every site of a model, ``image_embeds`` last."""
    named = [f"{stack}.{component}" for stack, (_, table) in stacks(model).items() for component in table]
    return [*named, "image_embeds"]


def layer_count(model: Model, site: str) -> int:
    """Return the number of layers of the stack of a site."""
    return len(model.get_submodule(stacks(model)[site.split(".")[0]][0]))


def head_count(model: Model, site: str) -> int:
    """Return the number of query heads in the stack of a site."""
    config = model.config.vision_config if site.startswith("vision.") else model.config.text_config
    return config.num_attention_heads


def locate(model: Model, site: str, layer: int | None) -> Point:
    """Return the module that carries a site and its side: its ``input``, ``output`` or keyword argument ``image``."""
    if site == "image_embeds":
        if layer is not None:
            raise ValueError("image_embeds has no layers")
        if isinstance(model, BlipForQuestionAnswering):
            return model.text_encoder, "image"
        return model.model.multi_modal_projector, "output"
    stack, component = site.split(".")
    root, table = stacks(model)[stack]
    path, side = table[component]
    return model.get_submodule(f"{root}.{layer}" + (f".{path}" if path else "")), side


def edited(model: Model, value: Tensor, edit: Edit) -> Tensor:
    """Return an activation after one edit."""
    kind, site, _, head, positions, new = edit
    if new.shape != value.shape:
        raise ValueError(f"{site}: the edit has shape {tuple(new.shape)}, the activation {tuple(value.shape)}")
    if kind == "add":
        if site != "image_embeds":
            raise ValueError(f"noise is added to image_embeds, not to {site}")
        return value + new
    if kind != "replace":
        raise ValueError(f"unknown edit {kind!r}")
    if site.endswith("_head") != (head is not None):
        raise ValueError(f"{site}: head is {head}")
    start, stop = 0, value.shape[-1]
    if head is not None:
        width = value.shape[-1] // head_count(model, site)
        start, stop = head * width, (head + 1) * width
    value = value.clone()
    for position in positions:
        value[0, position, start:stop] = new[0, position, start:stop]
    return value


def run(
    model: Model, inputs: dict[str, Tensor], edits: Iterable[Edit] = (), read: Iterable[Key] = ()
) -> tuple[Tensor, dict[Key, Tensor]]:
    """Run one forward pass of one example.

    Parameters
    ----------
    model : Model
        In eval mode.
    inputs : dict
        What the model's forward takes, batch 1.
    edits : iterable of Edit
        ``("replace", site, layer, head or None, positions, value)`` with the full activation ``[1, position, width]``
        as value, or ``("add", "image_embeds", None, None, None, noise)``. Applied in this order.
    read : iterable of (site, layer)
        Activations to return, as they are after the edits. A head site gives all heads, ``[1, position, width]``.

    Returns
    -------
    tuple
        Logits at the read-out position, float32 ``[vocab]``, and the activations by (site, layer).
    """
    edits, read = list(edits), list(read)
    found: dict[Key, Tensor] = {}
    calls: dict[Point, int] = {}
    decoded: list[Tensor] = []

    def visit(point: Point, value: Tensor) -> Tensor:
        calls[point] += 1
        for edit in edits:
            if locate(model, edit[1], edit[2]) == point:
                value = edited(model, value, edit)
        for site, layer in read:
            if locate(model, site, layer) == point:
                found[site, layer] = value.detach().clone()
        return value

    def register(point: Point) -> torch.utils.hooks.RemovableHandle:
        module, side = point
        if side == "input":
            return module.register_forward_pre_hook(lambda _, args: (visit(point, args[0]), *args[1:]))
        if side == "output":
            # A vision layer's hidden state is collected by a hook of transformers: this one must come before it.
            return module.register_forward_hook(lambda _, args, output: visit(point, output), prepend=True)
        name = "encoder_hidden_states"
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {name: visit(point, kwargs[name])}), with_kwargs=True
        )

    handles = []
    try:
        for site, layer in [*((edit[1], edit[2]) for edit in edits), *read]:
            point = locate(model, site, layer)
            if point not in calls:
                calls[point] = 0
                handles.append(register(point))
        if isinstance(model, BlipForQuestionAnswering):
            handles.append(model.text_decoder.register_forward_hook(lambda _, a, output: decoded.append(output.logits)))
        with torch.no_grad():
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if any(count != 1 for count in calls.values()):
        raise RuntimeError(f"a site was passed {sorted(set(calls.values()))} times in one forward pass")
    logits = decoded[0] if isinstance(model, BlipForQuestionAnswering) else output.logits
    return logits[0, -1].float(), found


def patched(
    model: Model,
    base_inputs: dict[str, Tensor],
    source_inputs: dict[str, Tensor],
    site: str,
    layer: int | Sequence[int] | None,
    positions: Sequence[int],
    head: int | None = None,
    base_noise: Tensor | None = None,
    source_noise: Tensor | None = None,
) -> Tensor:
    """Run the base with one cell replaced by its value in the source.

    Parameters
    ----------
    model : Model
        In eval mode.
    base_inputs, source_inputs : dict
        The run that is patched, and the run that the value comes from.
    site : str
        As in the method notes.
    layer : int, sequence of int or None
        Several layers are replaced jointly, each by its own source value. None for ``image_embeds``.
    positions : sequence of int
        In the sequence of the site's own stack.
    head : int, optional
        For head sites only.
    base_noise, source_noise : Tensor, optional
        Added to ``image_embeds`` in the base, in the source.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    layers = [layer] if layer is None or isinstance(layer, int) else list(layer)
    source_edits = [] if source_noise is None else [("add", "image_embeds", None, None, None, source_noise)]
    base_edits = [] if base_noise is None else [("add", "image_embeds", None, None, None, base_noise)]
    _, values = run(model, source_inputs, source_edits, [(site, index) for index in layers])
    for index in layers:
        base_edits.append(("replace", site, index, head, positions, values[site, index]))
    return run(model, base_inputs, base_edits)[0]


def metrics(logits: Tensor, answer_id: int, foil_id: int) -> dict[str, float]:
    """Return the answer's probability and log-probability and its logit minus the foil's."""
    logits = logits.double()
    log_probability = logits[answer_id] - torch.logsumexp(logits, dim=-1)
    return {
        "probability": log_probability.exp().item(),
        "log_probability": log_probability.item(),
        "logit_difference": (logits[answer_id] - logits[foil_id]).item(),
    }


def likely_tokens(base: Tensor, source: Tensor) -> tuple[int, int]:
    """Return the two tokens most probable in both runs, as answer and foil: those show an effect if there is one."""
    answer, foil = (base.log_softmax(-1) + source.log_softmax(-1)).topk(2).indices.tolist()
    return answer, foil


def randomise(model: Model, gain: float) -> None:
    """Draw all weights, matrices from N(0, gain² / fan_in), so that no effect is lost in rounding."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "word_embeddings" in name or "embed_tokens" in name:
                weight.normal_(0.0, 1.0)
            elif "position_embedding" in name or "class_embedding" in name:
                weight.normal_(0.0, 0.5)
            elif weight.dim() > 1:
                weight.normal_(0.0, gain * weight[0].numel() ** -0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                weight.normal_(1.0, 0.2)
            else:
                weight.normal_(0.0, 0.2)


def build_blip(
    seed: int,
    *,
    layers: int = 3,
    heads: int = 4,
    width: int = 32,
    mlp_width: int = 64,
    vision_layers: int = 2,
    vision_heads: int = 2,
    vision_mlp_width: int = 48,
    image_size: int = 24,
    patch_size: int = 8,
    vocab: int = 50,
    max_positions: int = 64,
) -> BlipForQuestionAnswering:
    """Return a random small BLIP; both encoders share one width, since its decoder has no other key projection."""
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
    text = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max_positions,
        **tokens,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": vision_mlp_width,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": vision_heads,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
        randomise(model, 1.0)
    with torch.no_grad():
        norm = model.text_decoder.cls.predictions.transform.LayerNorm
        norm.weight.mul_(2.0 * width**-0.5)
        norm.bias.mul_(2.0 * width**-0.5)
    return model.eval()


def build_llava(
    seed: int,
    *,
    layers: int = 3,
    heads: int = 4,
    num_key_value_heads: int | None = None,
    width: int = 32,
    head_dim: int | None = None,
    mlp_width: int = 64,
    vision_layers: int = 3,
    vision_heads: int = 2,
    vision_width: int = 24,
    vision_mlp_width: int = 48,
    image_size: int = 24,
    patch_size: int = 8,
    vocab: int = 50,
    vision_feature_layer: int = -2,
    max_positions: int = 256,
) -> LlavaForConditionalGeneration:
    """Return a random small LLaVA; the image token is the last of the vocabulary."""
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=num_key_value_heads or heads,
        head_dim=head_dim or width // heads,
        max_position_embeddings=max_positions,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=vision_mlp_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_heads,
        image_size=image_size,
        patch_size=patch_size,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocab - 1,
        image_seq_length=(image_size // patch_size) ** 2,
        vision_feature_layer=vision_feature_layer,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        randomise(model, 2.0**0.5)
    return model.eval()


def random_inputs(model: Model, seed: int, text_length: int = 5, decoder_length: int = 1) -> dict[str, Tensor]:
    """Return random inputs of batch 1: BLIP with ``decoder_length`` tokens from BOS on, LLaVA as BOS, image, text."""
    generator = torch.Generator().manual_seed(seed)
    vision, text = model.config.vision_config, model.config.text_config
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
    ids = torch.randint(3, text.vocab_size - 1, (1, text_length), generator=generator)
    bos = torch.full((1, 1), text.bos_token_id)
    if isinstance(model, BlipForQuestionAnswering):
        answer = torch.randint(3, text.vocab_size - 1, (1, decoder_length - 1), generator=generator)
        extra = {"decoder_input_ids": torch.cat([bos, answer], dim=1)}
    else:
        patches = (vision.image_size // vision.patch_size) ** 2
        ids = torch.cat([bos, torch.full((1, patches), model.config.image_token_id), ids], dim=1)
        extra = {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **extra}
