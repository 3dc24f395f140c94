"""A short hash that tells whether two bases are the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 8  # values looked at in each tensor
# What shapes do not show and yet changes the result. An explicit list: whole configs gain keys with each release.
_CONFIG = (
    "act_fn", "addition_embed_type", "attention_head_dim", "axes_dims_rope", "feed_forward_proj", "hidden_act",
    "num_attention_heads", "num_heads", "num_hidden_layers", "resnet_time_scale_shift", "scaling_factor",
    "shift_factor", "transformer_layers_per_block", "upcast_attention",
)  # fmt: skip


def signature(modules: Mapping[str, nn.Module], tokenizers: Mapping[str, Any], prediction_type: str) -> str:
    """Hash of architecture, vocabulary and weights.

    Architecture: class names, the names and shapes of all parameters, the few settings that shapes do not show.
    Vocabulary: every token with its number, and the length limit. Weights: SAMPLES evenly spaced values of every
    tensor, rounded to bfloat16, so that it costs milliseconds and is the same in float32 and bfloat16 (in float16 of
    float32 files it may differ; `load_base` takes it before it converts). Another fine-tuning of the same model gives
    another hash; a change of single weights between the samples goes unseen. Take it before anything is attached.

    Returns:
        "ARCHITECTURE-WEIGHTS": 12 and 16 hexadecimal digits.
    """
    architecture: dict[str, Any] = {"prediction_type": prediction_type}
    values: list[Tensor] = []
    for name, module in modules.items():
        tensors = {key: tensor for key, tensor in module.state_dict().items() if tensor.is_floating_point()}
        settings: Any = module.config
        config = settings.to_dict() if hasattr(settings, "to_dict") else dict(settings)
        architecture[name] = {
            "class": type(module).__name__,
            "shapes": {key: list(tensor.shape) for key, tensor in sorted(tensors.items())},
            "config": {key: config[key] for key in _CONFIG if key in config},
        }
        values += [_sampled(tensor) for _, tensor in sorted(tensors.items())]
    for name, tokenizer in tokenizers.items():
        vocabulary = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length])
        architecture[name] = hashlib.sha256(vocabulary.encode()).hexdigest()
    shape = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()
    numbers = torch.cat([value.cpu() for value in values]).view(torch.int16).numpy().tobytes()
    return f"{shape[:12]}-{hashlib.sha256(numbers).hexdigest()[:16]}"


def _sampled(tensor: Tensor) -> Tensor:
    """tensor: any shape -> (SAMPLES,) bfloat16, fewer where it has fewer values."""
    flat = tensor.detach().reshape(-1)
    count = min(SAMPLES, flat.numel())
    step = max(flat.numel() // SAMPLES, 1)
    return flat[: count * step : step].to(torch.bfloat16)
