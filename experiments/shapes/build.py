"""The two bundled models before training: configurations, initial weights, tokenizers and processors.

Initial weights decide whether so small a model learns to bind colour to shape at all: every matrix starts at
N(0, 1/fan_in), token embeddings at N(0, 1), text position embeddings at N(0, 0.5²), a patch's position embedding at the
sum of its row's and its column's, each N(0, 1); transformers' default (0.02) does not get there. Pixels are normed so
that the background is near 0: otherwise what all patches share drowns where each of them lies.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from vlm_patching.pairs.shapes.questions import PLURALS
from vlm_patching.pairs.shapes.scene import CELL, COLORS, GRID, IMAGE_SIZE, SHAPES, SIZES

PIXEL_MEAN, PIXEL_STD = 0.9, 0.5
WIDTH, HEADS, TEXT_LAYERS, VISION_LAYERS, TEXT_MLP = 64, 4, 6, 2, 192
TEMPLATE_WORDS = (
    "? : user assistant what color shape size is the object objects a or on at to of left right top bottom above below "
    "how many are there 0 1 2 3 4 5"
)
WORDS = [*TEMPLATE_WORDS.split(), *COLORS, *SHAPES, *PLURALS.values(), *SIZES]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def build(name: str, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """An untrained bundled model and its processor, by name."""
    torch.manual_seed(seed)
    return {"shapes-blip": _build_blip, "shapes-llava": _build_llava}[name]()


def _build_blip() -> tuple[PreTrainedModel, ProcessorMixin]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = BertTokenizer(vocab=vocabulary, bos_token="[DEC]")
    tokenizer.model_max_length = 64
    image_processor = BlipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[PIXEL_MEAN] * 3, image_std=[PIXEL_STD] * 3
    )
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": WIDTH,
        "encoder_hidden_size": WIDTH,
        "intermediate_size": TEXT_MLP,
        "projection_dim": WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "label_smoothing": 0.0,
        "bos_token_id": vocabulary["[DEC]"],
        "eos_token_id": vocabulary["[SEP]"],
        "sep_token_id": vocabulary["[SEP]"],
        "pad_token_id": vocabulary["[PAD]"],
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": CELL,
    }
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, image_text_hidden_size=WIDTH)
    model = BlipForQuestionAnswering(config)
    initialise(model)
    embeddings = model.text_decoder.bert.embeddings
    for table in (embeddings.word_embeddings, embeddings.position_embeddings):
        nn.init.normal_(table.weight, std=WIDTH**-0.5)  # tied to the unembedding, and normed before the first layer
    return model, BlipProcessor(image_processor, tokenizer)


def _build_llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=CELL,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=TEXT_MLP,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
        pad_token_id=vocabulary["<pad>"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=vocabulary["<image>"],
        vision_feature_layer=-1,
        image_seq_length=(IMAGE_SIZE // CELL) ** 2,
    )
    model = LlavaForConditionalGeneration(config)
    initialise(model)
    return model, processor


def initialise(model: PreTrainedModel) -> None:
    """Set every weight to the size that lets a narrow transformer learn (see the module's first lines)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5 if "position" in name else 1.0)
    for name, parameter in model.named_parameters():
        if name.endswith("class_embedding"):
            nn.init.normal_(parameter, std=0.5)
        elif name.endswith(("vision_model.embeddings.position_embedding", "embeddings.position_embedding.weight")):
            rows, columns = torch.randn(2, GRID, WIDTH)
            grid = (rows[:, None] + columns[None]).flatten(0, 1)
            parameter.data = torch.cat([torch.randn(1, WIDTH), grid]).reshape(parameter.shape)
