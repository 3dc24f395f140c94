"""Stable Diffusion 1.x and 2.x, and the embedded model of the same architecture.

Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models (CVPR 2022); the parts and their
order are those of diffusers' `StableDiffusionPipeline`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .base import Base, Part, TextEncoding, check_sides
from .quiet import quiet

if TYPE_CHECKING:
    from ..conditioning import Conditioning


class StableDiffusion(Base):
    """One CLIP text encoder, a UNet with cross-attention, a VAE."""

    family = "sd"
    pipeline_class = "StableDiffusionPipeline"
    part_list: ClassVar[tuple[Part, ...]] = (
        Part("tokenizer", "tokenizer", "transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        Part("text_encoder", "model", "transformers", ("CLIPTextModel",)),
        Part("unet", "model", "diffusers", ("UNet2DConditionModel",)),
        Part("vae", "model", "diffusers", ("AutoencoderKL",)),
        Part("scheduler", "scheduler", "diffusers"),
    )

    @property
    def denoiser(self) -> Any:
        return self.parts["unet"]

    @property
    def unet(self) -> Any:
        """The denoiser under its usual name."""
        return self.parts["unet"]

    @property
    def pixels_per_latent(self) -> int:
        """Side in pixels of what one latent position stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        side = self.unet.config.sample_size
        return (side if isinstance(side, int) else side[0]) * self.pixels_per_latent

    def problems(self) -> list[str]:
        unet = self.unet.config
        configs: list[Any] = [encoder.config for encoder in self.text_encoders]
        width = sum(config.hidden_size for config in configs)
        found = []
        if unet.cross_attention_dim != width:
            found.append(f"the UNet reads text of width {unet.cross_attention_dim}, the encoder's is {width}")
        if unet.in_channels != self.vae.config.latent_channels:
            found.append(
                f"the UNet takes {unet.in_channels} channels, the VAE has {self.vae.config.latent_channels}"
                + (": an inpainting model makes no pictures from text alone" if unet.in_channels == 9 else "")
            )
        if unet.time_cond_proj_dim is not None or unet.encoder_hid_dim_type is not None:
            found.append("distilled models and built-in image adapters are not supported")
        for tokenizer, config in zip(self.tokenizers, configs, strict=True):
            if tokenizer.model_max_length > config.max_position_embeddings:
                found.append(
                    f"the tokenizer gives up to {tokenizer.model_max_length} tokens, "
                    f"the text encoder has {config.max_position_embeddings} positions"
                )
        if self.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            found.append(f"prediction type {self.scheduler.config.prediction_type!r} is not supported")
        return found

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        check_sides(height, width, multiple=self.pixels_per_latent)
        side = self.pixels_per_latent
        return (self.unet.config.in_channels, height // side, width // side)

    def encode_tokens(self, tokens: Sequence[Tensor]) -> TextEncoding:
        (ids,) = tokens
        ids = ids.to(self.text_encoder.device)
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = (ids != self.tokenizer.pad_token_id).long()
        return TextEncoding(self.text_encoder(ids, attention_mask=mask)[0])

    def predict(
        self, latents: Tensor, timestep: Tensor | float, conditioning: Conditioning, *, guidance: float = 1.0
    ) -> Tensor:
        return self.unet(latents, timestep, encoder_hidden_states=conditioning.embeds, return_dict=False)[0]

    def predicted_clean(self, latents: Tensor, prediction: Tensor, timestep: Tensor | float) -> Tensor:
        """x0 = (x_t - sqrt(1 - a) eps) / sqrt(a), or sqrt(a) x_t - sqrt(1 - a) v, with a the cumulative alpha at t.

        Source: Ho et al., Denoising Diffusion Probabilistic Models (2020), eq. 4; Salimans and Ho, Progressive
        Distillation for Fast Sampling of Diffusion Models (2022), appendix D.
        """
        step = torch.as_tensor(timestep).round().long().clamp(min=0)
        alpha = self.scheduler.alphas_cumprod[step.cpu()].to(latents.device, torch.float32)
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        if self.prediction_type == "v_prediction":
            return (signal * latents - noise * prediction).to(latents.dtype)
        return ((latents - noise * prediction) / signal.clamp(min=1e-4)).to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]

    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents * self.vae.config.scaling_factor).to(self.dtype)

    def to_pipeline(self) -> Any:
        with quiet():
            from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            **{name: part for name, part in self.parts.items() if name != "scheduler"},
            scheduler=copy.deepcopy(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
