"""BLIP for question answering: image encoder → question encoder (cross-attends to the image) → answer decoder
(cross-attends to the question). BLIP for captions: image encoder → decoder (cross-attends to the image). Post-norm:
``*_block_out`` is the residual stream after a block's norm."""

from __future__ import annotations

from transformers import BlipConfig, BlipTextConfig, BlipVisionConfig

from vlm_patching.models.architecture import Architecture, Attention, ImageEntry, Stack, Tap


def describe(config: BlipConfig) -> Architecture:
    """The map of a `BlipForQuestionAnswering`, or of a `BlipForConditionalGeneration`."""
    if "BlipForConditionalGeneration" in (config.architectures or []):
        return _captioner(config)
    vision, text = config.vision_config, config.text_config
    return Architecture(
        family="blip",
        model_class="BlipForQuestionAnswering",
        stacks=(
            _vision_stack(vision),
            _text_stack(
                text,
                "question_encoder",
                "text_encoder.encoder.layer.{layer}",
                "vision",
                causal=False,
                whole=Tap("text_encoder", "output", "last_hidden_state"),
            ),
            _text_stack(
                text,
                "answer_decoder",
                "text_decoder.bert.encoder.layer.{layer}",
                "question_encoder",
                causal=True,
                unembed=("text_decoder.cls",),
            ),
        ),
        image=_image(vision),
        text_stack="question_encoder",
        token_embeds=Tap("text_encoder.embeddings.word_embeddings", "output"),
        readout=Tap("text_decoder", "output", "logits"),
    )


def _captioner(config: BlipConfig) -> Architecture:
    """A caption is continued by a causal decoder that cross-attends to the image."""
    layer = "text_decoder.bert.encoder.layer.{layer}"
    return Architecture(
        family="blip",
        model_class="BlipForConditionalGeneration",
        stacks=(
            _vision_stack(config.vision_config),
            _text_stack(config.text_config, "language", layer, "vision", causal=True, unembed=("text_decoder.cls",)),
        ),
        image=_image(config.vision_config),
        text_stack="language",
        token_embeds=Tap("text_decoder.bert.embeddings.word_embeddings", "output"),
        readout=Tap("text_decoder", "output", "logits"),
        continues=True,
    )


def _text_stack(
    text: BlipTextConfig,
    name: str,
    layer: str,
    keys: str,
    causal: bool,
    unembed: tuple[str, ...] = (),
    whole: Tap | None = None,
) -> Stack:
    taps = {
        "resid_pre": Tap(layer, "input"),
        "attn_context": Tap(f"{layer}.attention.output.dense", "input"),
        "attn_out": Tap(f"{layer}.attention.output.dense", "output"),
        "attn_block_out": Tap(f"{layer}.attention.output", "output"),
        "cross_attn_context": Tap(f"{layer}.crossattention.output.dense", "input"),
        "cross_attn_out": Tap(f"{layer}.crossattention.output.dense", "output"),
        "cross_attn_block_out": Tap(f"{layer}.crossattention.output", "output"),
        "mlp_neuron": Tap(f"{layer}.output.dense", "input"),
        "mlp_out": Tap(f"{layer}.output.dense", "output"),
        "mlp_block_out": Tap(f"{layer}.output", "output"),
        "resid_post": Tap(layer, "output"),
    }
    attentions = {
        "attn_pattern": Attention(f"{layer}.attention.self", "attention_mask", name, causal),
        "cross_attn_pattern": Attention(f"{layer}.crossattention.self", "encoder_attention_mask", keys, folds=True),
    }
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    made = (f"{layer}.crossattention.self.key", f"{layer}.crossattention.self.value")
    return Stack(name, layers, heads, taps, layers - 1, attentions, unembed, whole, made)


def _vision_stack(vision: BlipVisionConfig) -> Stack:
    vision_layer = "vision_model.encoder.layers.{layer}"
    vision_taps = {
        "resid_pre": Tap(vision_layer, "input"),
        "attn_context": Tap(f"{vision_layer}.self_attn.projection", "input"),
        "attn_out": Tap(f"{vision_layer}.self_attn.projection", "output"),
        "mlp_neuron": Tap(f"{vision_layer}.mlp.fc2", "input"),
        "mlp_out": Tap(f"{vision_layer}.mlp.fc2", "output"),
        "resid_post": Tap(vision_layer, "output"),
    }
    return Stack(
        "vision",
        vision.num_hidden_layers,
        vision.num_attention_heads,
        vision_taps,
        vision.num_hidden_layers - 1,
        {"attn_pattern": Attention(f"{vision_layer}.self_attn", None, "vision")},
    )


def _image(vision: BlipVisionConfig) -> ImageEntry:
    side = vision.image_size // vision.patch_size
    return ImageEntry(
        embeds=Tap("vision_model", "output", "last_hidden_state"),
        bypass=(),
        rows=side,
        columns=side,
        class_token=True,
        inline=False,
    )
