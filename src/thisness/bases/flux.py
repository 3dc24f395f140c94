"""FLUX.1 dev and schnell, and models of the same architecture.

Source: Black Forest Labs, FLUX.1 (2024), whose parts and order are those of diffusers' `FluxPipeline`; Esser et al.,
Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (2024), for the flow matching and its shift.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import ThisnessError
from .base import Base, Part, TextEncoding, check_sides
from .quiet import quiet
from .registry import Facts

if TYPE_CHECKING:
    from ..conditioning import Conditioning
    from ..prompt import FilledPrompt, TokenSpans

PATCH = 2  # latent positions on a side that are packed into one token
LONGEST = {True: 512, False: 256}  # T5 tokens of the official code: dev (guidance is an input), schnell (it is not)


class Flux(Base):
    """T5 states are what is attended to, CLIP's pooled state goes into the modulation; 16-channel latents, packed 2x2.

    Latents are (16, h, w) here as in other families: they are packed for the transformer alone. The T5 tokenizer is the
    first: it counts the positions of `Conditioning.embeds`. No position of the text is masked, as in diffusers.

    Attributes:
        embedded_guidance: the scale is an input of the transformer (dev), so that negative prompts do nothing; else
            (schnell) there is none, unless the options ask for more than 1: then both branches run.
    """

    family = "flux"
    pipeline_class = "FluxPipeline"
    part_list: ClassVar[tuple[Part, ...]] = (
        Part("tokenizer_2", "tokenizer", "transformers", ("T5Tokenizer", "T5TokenizerFast")),
        Part("tokenizer", "tokenizer", "transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        Part("text_encoder_2", "model", "transformers", ("T5EncoderModel",)),
        Part("text_encoder", "model", "transformers", ("CLIPTextModel",)),
        Part("transformer", "model", "diffusers", ("FluxTransformer2DModel",)),
        Part("vae", "model", "diffusers", ("AutoencoderKL",)),
        Part("scheduler", "scheduler", "diffusers", ("FlowMatchEulerDiscreteScheduler",)),
    )

    def __init__(
        self,
        parts: Mapping[str, Any],
        name: str,
        facts: Facts | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """As `Base`; a T5 tokenizer that takes more tokens than in the official code is replaced by a copy."""
        parts = dict(parts)
        tokens, transformer = parts.get("tokenizer_2"), parts.get("transformer")
        if tokens is not None and transformer is not None:
            longest = LONGEST[bool(transformer.config.guidance_embeds)]
            if tokens.model_max_length > longest:
                parts["tokenizer_2"] = copy.deepcopy(tokens)
                parts["tokenizer_2"].model_max_length = longest
        super().__init__(parts, name, facts, settings)
        self.embedded_guidance = bool(self.transformer.config.guidance_embeds)

    @property
    def denoiser(self) -> Any:
        return self.parts["transformer"]

    @property
    def transformer(self) -> Any:
        """The denoiser under its usual name."""
        return self.parts["transformer"]

    @property
    def pixels_per_token(self) -> int:
        """Side in pixels of what one token of the picture stands for."""
        return PATCH * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        side = self.vae.config.sample_size
        return side if isinstance(side, int) else side[0]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Flux:
        """Move all parts with weights; returns itself. In float16 T5 overflows, so that a part of it stays float32."""
        kept = {}
        if dtype == torch.float16:
            layers = self.parts["text_encoder_2"].named_modules()
            kept = {layer: copy.deepcopy(layer.weight.data) for name, layer in layers if name.endswith(".wo")}
        super().to(device, dtype)
        for layer, weight in kept.items():
            layer.weight.data = weight.to(layer.weight.device, torch.float32)
        return self

    def problems(self) -> list[str]:
        config = self.transformer.config
        t5, clip = self.parts["text_encoder_2"].config, self.parts["text_encoder"].config
        found = []
        if config.joint_attention_dim != t5.d_model:
            found.append(f"the transformer reads text of width {config.joint_attention_dim}, T5's is {t5.d_model}")
        if config.pooled_projection_dim != clip.hidden_size:
            found.append(
                f"the transformer reads pooled text of width {config.pooled_projection_dim}, CLIP's is "
                f"{clip.hidden_size}"
            )
        taken, given = config.in_channels, PATCH * PATCH * self.vae.config.latent_channels
        if taken != given or (config.out_channels or taken) != taken:
            found.append(
                f"the transformer takes {taken} channels, packed latents have {given}"
                + (": a model for filling or for control images makes no pictures from text alone" * (taken > given))
            )
        if self.vae.config.use_quant_conv or self.vae.config.shift_factor is None:
            found.append("the VAE is not one of FLUX: it has no shift, or a quantising layer")
        if self.tokenizers[1].model_max_length > clip.max_position_embeddings:
            found.append(
                f"CLIP's tokenizer gives up to {self.tokenizers[1].model_max_length} tokens, its encoder has "
                f"{clip.max_position_embeddings} positions"
            )
        return found

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        check_sides(height, width, multiple=self.pixels_per_token)
        side = self.pixels_per_token // PATCH
        return (self.vae.config.latent_channels, height // side, width // side)

    def tokenize(self, prompt: FilledPrompt) -> list[TokenSpans]:
        """T5's tokens, which the transformer attends to; and CLIP's, of which only the first 77 count."""
        first, second = self.tokenizers
        return [prompt.tokenize(first), prompt.tokenize(second, cut=True)]

    def encode_tokens(self, tokens: Sequence[Tensor]) -> TextEncoding:
        """embeds: T5's last states, padding included, (batch, length, width). pooled: CLIP's last state at the first
        end mark, (batch, width); for where it is found see `StableDiffusionXL.encode_tokens`.
        """
        t5, clip = (ids.to(self.device) for ids in tokens)
        embeds = self.parts["text_encoder_2"](t5, output_hidden_states=False)[0]
        return TextEncoding(embeds, self.pooled_text(clip))

    def pooled_text(self, ids: Tensor) -> Tensor:
        """CLIP's last state at the first end mark, of tokens (batch, length): (batch, width)."""
        states = self.parts["text_encoder"](ids, output_hidden_states=False).last_hidden_state
        ends = ids.eq(self.tokenizers[1].eos_token_id).int().argmax(-1)
        return states[torch.arange(len(ids), device=ids.device), ends]

    def predict(
        self, latents: Tensor, timestep: Tensor | float, conditioning: Conditioning, *, guidance: float = 1.0
    ) -> Tensor:
        """As `Base.predict`: the velocity, noise minus picture. timestep: 1000 is noise, 0 the picture."""
        if conditioning.pooled is None:
            raise ThisnessError("conditioning has no pooled text, which FLUX reads: encode sentences with this base")
        batch, _, height, width = latents.shape
        time = torch.as_tensor(timestep, device=latents.device).to(latents.dtype).expand(batch)
        scale = None
        if self.embedded_guidance:
            scale = torch.full([1], guidance, device=latents.device, dtype=torch.float32).expand(batch)
        text = torch.zeros(conditioning.embeds.shape[1], 3, device=latents.device)
        answer = self.transformer(
            hidden_states=pack(latents),
            timestep=time / 1000,
            guidance=scale,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.embeds,
            txt_ids=text,
            img_ids=position_ids(height // PATCH, width // PATCH, latents.device),
            return_dict=False,
        )[0]
        return unpack(answer, height, width)

    def predicted_clean(self, latents: Tensor, prediction: Tensor, timestep: Tensor | float) -> Tensor:
        """x0 = x_t - t v, with t = timestep / 1000.

        Source: Esser et al., section 2, with x_t = (1 - t) x0 + t eps and v = eps - x0.
        """
        time = torch.as_tensor(timestep, device=latents.device, dtype=torch.float32) / 1000
        return (latents.float() - time * prediction.float()).to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        scaled = latents.to(self.vae.dtype) / config.scaling_factor + config.shift_factor
        return self.vae.decode(scaled, return_dict=False)[0]

    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        config = self.vae.config
        posterior = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return ((latents - config.shift_factor) * config.scaling_factor).to(self.dtype)

    def to_pipeline(self) -> Any:
        with quiet():
            from diffusers import FluxPipeline

        parts = {name: part for name, part in self.parts.items() if name != "scheduler"}
        return FluxPipeline(**parts, scheduler=copy.deepcopy(self.scheduler))


def pack(latents: Tensor) -> Tensor:
    """(batch, C, h, w) -> (batch, h/2 * w/2, 4 C): each 2x2 of positions becomes one token, row by row."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(batch, h/2 * w/2, 4 C) -> (batch, C, h, w); height, width: h and w."""
    patches = tokens.reshape(len(tokens), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def position_ids(rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """(rows * columns, 3) float32: 0, row, column of each token of a picture. A text's tokens are all 0, 0, 0."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None]
    return ids.reshape(-1, 3).to(device)


def shift_of(tokens: int, config: Mapping[str, Any]) -> float:
    """mu, by which the noise levels of a picture of so many tokens are shifted; references do not count.

    Args:
        tokens: of the picture, after packing.
        config: of the scheduler.

    Source: Esser et al., section 5.3.2; linear between the two lengths, as in FLUX's official code.
    """
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - least) / (last - first)
    return tokens * slope + (least - slope * first)
