"""The multimodal encoder of BLIP-Diffusion: a vision transformer and a querying transformer, which reads the picture
together with the name of its category.

Names of the weights are those of diffusers' `Blip2QFormerModel`, whose own forward pass does not run with the current
transformers. Source: salesforce/LAVIS, blip_diffusion_models, Qformer.py; Li et al., BLIP-2 (2023), section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArtefactError


@dataclass(frozen=True)
class VisionConfig:
    """ViT-L/14 of CLIP without its last block."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    hidden_act: str = "quick_gelu"
    qkv_bias: bool = True


@dataclass(frozen=True)
class QFormerConfig:
    """BERT-base with cross-attention in every layer.

    Args:
        num_query_tokens: rows that come out.
        encoder_hidden_size: of the picture's states.
        vocab_size: of the category's tokenizer; 0 where the category comes as vectors.
        words_size: width of those vectors.
        out_size: width of what comes out; 0 for hidden_size, without a layer of its own.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_query_tokens: int = 16
    encoder_hidden_size: int = 1024
    cross_attention_frequency: int = 1
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    vocab_size: int = 30523
    words_size: int = 0
    out_size: int = 0


def configured(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """What a config.json says that the class knows."""
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known and value is not None})


def activation(name: str) -> Any:
    """Raises ArtefactError for one that no published model has."""
    known = {"gelu": F.gelu, "quick_gelu": quick_gelu}
    if name not in known:
        raise ArtefactError(f"activation {name!r}: known are {', '.join(known)}")
    return known[name]


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by heads; (B, L, width) each. mask: (B, Lk) of bool, which keys are there."""
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    allowed = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)


class Named(nn.Module):
    """Modules under published names."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class VisionBlock(nn.Module):
    """x + attention(LN x), x + MLP(LN x)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, self.heads, self.act = config.hidden_size, config.num_attention_heads, activation(config.hidden_act)
        self.self_attn = Named(
            qkv=nn.Linear(width, 3 * width, bias=config.qkv_bias), projection=nn.Linear(width, width)
        )
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = Named(fc1=nn.Linear(width, config.intermediate_size), fc2=nn.Linear(config.intermediate_size, width))
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.self_attn.qkv(self.layer_norm1(x)).chunk(3, -1)
        x = x + self.self_attn.projection(attend(q, k, v, self.heads))
        return x + self.mlp.fc2(self.act(self.mlp.fc1(self.layer_norm2(x))))


class VisionEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, places = config.hidden_size, (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(1, places, width))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(pixels), -1, -1), patches], 1) + self.position_embedding


class VisionTower(nn.Module):
    """(n, 3, size, size) normalised -> (n, 1 + patches, width), with norms before and after."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = Named(layers=nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers)))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pre_layernorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class Attention(nn.Module):
    """LN(x + W attention(x, y)): BERT's order."""

    def __init__(self, config: QFormerConfig, source: int) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.attention = Named(
            query=nn.Linear(width, width), key=nn.Linear(source, width), value=nn.Linear(source, width)
        )
        self.output = Named(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, config.layer_norm_eps))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        own = self.attention
        found = attend(own.query(x), own.key(y), own.value(y), self.heads, mask)
        return self.output.LayerNorm(self.output.dense(found) + x)


class QFormerLayer(nn.Module):
    """Self-attention of queries and words together; then the queries read the picture; each kind has its own MLP."""

    def __init__(self, config: QFormerConfig, number: int) -> None:
        super().__init__()
        width, wide, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.act = activation(config.hidden_act)
        self.attention = Attention(config, width)
        self.reads = number % config.cross_attention_frequency == 0
        if self.reads:
            self.crossattention = Attention(config, config.encoder_hidden_size)
        self.intermediate = Named(dense=nn.Linear(width, wide))
        self.intermediate_query = Named(dense=nn.Linear(width, wide))
        self.output_query = Named(dense=nn.Linear(wide, width), LayerNorm=nn.LayerNorm(width, eps))
        self.output = Named(dense=nn.Linear(wide, width), LayerNorm=nn.LayerNorm(width, eps))

    def forward(self, x: Tensor, picture: Tensor, queries: int, mask: Tensor) -> Tensor:
        x = self.attention(x, x, mask)
        asked, words = x[:, :queries], x[:, queries:]
        if self.reads:
            asked = self.crossattention(asked, picture)
        asked = self._mlp(asked, self.intermediate_query, self.output_query)
        return torch.cat([asked, self._mlp(words, self.intermediate, self.output)], 1)

    def _mlp(self, x: Tensor, inner: Named, outer: Named) -> Tensor:
        return outer.LayerNorm(outer.dense(self.act(inner.dense(x))) + x)


class ProjLayer(nn.Module):
    """x + W2 quickgelu(W1 LN(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.LayerNorm = nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dense2(quick_gelu(self.dense1(self.LayerNorm(x))))


class QFormer(nn.Module):
    """A picture and the name of its category to rows that take the place of words.

    Args:
        config: of the querying transformer.
        vision: of its own vision transformer; None where the picture's states come from elsewhere.
    """

    def __init__(self, config: QFormerConfig, vision: VisionConfig | None = None) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.embeddings = Named(
            position_embeddings=nn.Embedding(config.max_position_embeddings, width),
            LayerNorm=nn.LayerNorm(width, config.layer_norm_eps),
        )
        if config.vocab_size:
            self.embeddings.add_module("word_embeddings", nn.Embedding(config.vocab_size, width))
        if config.words_size:
            self.word_projection = nn.Linear(config.words_size, width)
        if vision is not None:
            self.visual_encoder = VisionTower(vision)
        self.encoder = Named(layer=nn.ModuleList(QFormerLayer(config, i) for i in range(config.num_hidden_layers)))
        self.proj_layer = ProjLayer(width)
        if config.out_size:
            self.output_projection = nn.Linear(width, config.out_size)

    def forward(self, picture: Tensor, words: Tensor, there: Tensor | None = None) -> Tensor:
        """
        Args:
            picture: (n, patches, encoder_hidden_size), what the vision transformer gives.
            words: of the category: (n, length) ids, or (n, length, words_size) vectors.
            there: (n, length) of bool, False at the padding.

        Returns:
            (n, num_query_tokens, out_size or hidden_size).
        """
        read = self.word_projection(words) if words.ndim == 3 else self.embeddings.word_embeddings(words)
        read = read + self.embeddings.position_embeddings.weight[: read.shape[1]]
        queries = self.config.num_query_tokens
        asked = self.query_tokens.expand(len(read), -1, -1)
        x = self.embeddings.LayerNorm(torch.cat([asked, read], 1))
        there = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device) if there is None else there
        mask = F.pad(there, (queries, 0), value=True)
        for layer in self.encoder.layer:
            x = layer(x, picture, queries, mask)
        x = self.proj_layer(x[:, :queries])
        return self.output_projection(x) if self.config.out_size else x
