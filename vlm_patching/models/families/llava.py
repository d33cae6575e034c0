"""LLaVA 1.5: CLIP tower → projector → image positions inside the language model's own sequence (early fusion)."""

from __future__ import annotations

from transformers import LlavaConfig

from vlm_patching.errors import SpecError
from vlm_patching.models.architecture import Architecture, Attention, ImageEntry, Stack, Tap


def describe(config: LlavaConfig) -> Architecture:
    """The map of a `LlavaForConditionalGeneration`; `SpecError` for towers or feature layers that it does not cover."""
    vision, text = config.vision_config, config.text_config
    if vision.model_type != "clip_vision_model" or config.vision_feature_select_strategy != "default":
        raise SpecError(
            f"This LLaVA reads a {vision.model_type} with strategy {config.vision_feature_select_strategy!r}; "
            "a clip_vision_model with strategy 'default' (patches without the class token) is what is known here."
        )
    if not isinstance(config.vision_feature_layer, int):
        raise SpecError(f"This LLaVA reads several vision layers ({config.vision_feature_layer}); one is supported.")
    layers = vision.num_hidden_layers
    if not -layers <= config.vision_feature_layer <= layers or config.vision_feature_layer == 0:
        raise SpecError(
            f"vision_feature_layer {config.vision_feature_layer} is no output of this model's {layers} vision layers."
        )
    side = vision.image_size // vision.patch_size
    # hidden_states[0] is what enters layer 0, so hidden_states[k] is the output of layer k - 1
    read = config.vision_feature_layer % (vision.num_hidden_layers + 1) - 1
    language, tower = "model.language_model.layers.{layer}", "model.vision_tower.encoder.layers.{layer}"
    language_taps = {
        "resid_pre": Tap(language, "input"),
        "attn_context": Tap(f"{language}.self_attn.o_proj", "input"),
        "attn_out": Tap(f"{language}.self_attn.o_proj", "output"),
        "mlp_neuron": Tap(f"{language}.mlp.down_proj", "input"),
        "mlp_out": Tap(f"{language}.mlp.down_proj", "output"),
        "resid_post": Tap(language, "output"),
    }
    vision_taps = {
        "resid_pre": Tap(tower, "input"),
        "attn_context": Tap(f"{tower}.self_attn.out_proj", "input"),
        "attn_out": Tap(f"{tower}.self_attn.out_proj", "output"),
        "mlp_neuron": Tap(f"{tower}.mlp.fc2", "input"),
        "mlp_out": Tap(f"{tower}.mlp.fc2", "output"),
        "resid_post": Tap(tower, "output"),
    }
    return Architecture(
        family="llava",
        model_class="LlavaForConditionalGeneration",
        stacks=(
            Stack(
                "vision",
                vision.num_hidden_layers,
                vision.num_attention_heads,
                vision_taps,
                read,
                {"attn_pattern": Attention(f"{tower}.self_attn", "attention_mask", "vision", eager=True)},
                skips=False,  # a hook of transformers collects the layer that is read
            ),
            Stack(
                "language",
                text.num_hidden_layers,
                text.num_attention_heads,
                language_taps,
                text.num_hidden_layers - 1,
                {
                    "attn_pattern": Attention(
                        f"{language}.self_attn", "attention_mask", "language", causal=True, eager=True
                    )
                },
                unembed=("model.language_model.norm", "lm_head"),
                entry=Tap(f"{language}.input_layernorm", "input"),
            ),
        ),
        image=ImageEntry(
            embeds=Tap("model.multi_modal_projector", "output"),
            bypass=("model.vision_tower",),
            rows=side,
            columns=side,
            class_token=True,
            inline=True,
        ),
        text_stack="language",
        token_embeds=Tap("model.language_model.embed_tokens", "output"),
        readout=Tap("lm_head", "output"),
        continues=True,
        keeps_logits=True,
        packs="language",
    )
