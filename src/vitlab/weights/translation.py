"""Rename the weights of Google's, Hugging Face's and torchvision's ViTs."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Patterns in their names -> timm's. Google writes paths (`Transformer/encoderblock_0/...`), the others dots.
NAMES = (
    (r"^(opt/target/|params/(img/)?|vit\.|deit\.|dinov2\.)", ""),
    (r"^(cls|class_token|embeddings\.cls_token)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^((Transformer/posembed_input/|encoder\.)?pos_embedding|embeddings\.position_embeddings)$", "pos_embed"),
    (r"^(embedding/|conv_proj\.|embeddings\.patch_embeddings\.projection\.)", "patch_embed.proj."),
    (r"^(Transformer/encoderblock_|encoder\.layer\.|encoder\.layers\.encoder_layer_)(\d+)[/.]", r"blocks.\2."),
    (r"LayerNorm_0/|layernorm_before\.|ln_1\.", "norm1."),
    (r"LayerNorm_[12]/|layernorm_after\.|ln_2\.", "norm2."),
    (r"(MultiHeadDotProductAttention_[01]/|attention\.attention\.)(query|key|value)[/.]", r"attn.\2."),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"MultiHeadDotProductAttention_[01]/out/|attention\.output\.dense\.|self_attention\.out_proj\.", "attn.proj."),
    (r"MlpBlock_[03]/Dense_0/|intermediate\.dense\.|mlp\.(0|linear_1)\.", "mlp.fc1."),
    (r"MlpBlock_[03]/Dense_1/|(?<=\d\.)output\.dense\.|mlp\.(3|linear_2)\.", "mlp.fc2."),
    (r"layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
    (r"^(Transformer/encoder_norm/|layernorm\.|encoder\.ln\.)", "norm."),
    (r"^(head/|(cls_)?classifier\.|heads\.head\.)", "head."),
    (r"^distillation_classifier\.", "head_dist."),
    (r"(kernel|scale)$", "weight"),
)


def with_timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a state_dict, and join those of query, key and value; unknown names stay."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):  # a BEiT's key has no bias
            renamed[name.replace("query", "qkv")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read a `.npz` file of google-research/vision_transformer or big_vision, with torch's axes and Google's names."""
    state = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in (name for name in arrays.files if not name.startswith("opt/state")):
            tensor = torch.from_numpy(arrays[name])
            if name.endswith("embedding/kernel"):  # [height, width, channels, D]
                tensor = tensor.permute(3, 2, 0, 1)
            elif name.endswith("kernel"):  # [in, out], with heads [in, heads, out] or [heads, in, out]
                tensor = (tensor.flatten(0, -2) if "/out/" in name else tensor.flatten(1)).T
            elif name.endswith("bias"):
                tensor = tensor.flatten()
            state[name] = tensor.contiguous()
    return state
