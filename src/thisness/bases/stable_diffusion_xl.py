"""Stable Diffusion XL, and SDXL Turbo of the same architecture. The refiner, a model of its own, is not used.

Source: Podell et al., SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis (2023); the parts and
their order are those of diffusers' `StableDiffusionXLPipeline`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ThisnessError
from .base import Part, TextEncoding
from .quiet import quiet
from .registry import Facts
from .stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from ..conditioning import Conditioning

SIZES = 6  # numbers that tell the UNet of sizes: original height and width, crop top and left, target height and width


class StableDiffusionXL(StableDiffusion):
    """Two CLIP text encoders side by side in `embeds`; the UNet reads the second one's pooled vector and sizes, too.

    Attributes:
        zero_negative: an empty negative prompt is zeros, not the encoded empty sentence; the pipeline's own setting.
    """

    family = "sdxl"
    pipeline_class = "StableDiffusionXLPipeline"
    part_list = (
        Part("tokenizer", "tokenizer", "transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        Part("tokenizer_2", "tokenizer", "transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        Part("text_encoder", "model", "transformers", ("CLIPTextModel",)),
        Part("text_encoder_2", "model", "transformers", ("CLIPTextModelWithProjection",)),
        Part("unet", "model", "diffusers", ("UNet2DConditionModel",)),
        Part("vae", "model", "diffusers", ("AutoencoderKL",)),
        Part("scheduler", "scheduler", "diffusers"),
    )

    def __init__(
        self,
        parts: Mapping[str, Any],
        name: str,
        facts: Facts | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """As `Base`; a VAE in float16 that overflows there (`force_upcast`) is replaced by a copy in float32."""
        super().__init__(parts, name, facts, settings)
        self.zero_negative = bool(self.settings.get("force_zeros_for_empty_prompt", True))
        self._told: dict[tuple[int, int, torch.device], Tensor] = {}
        if self._overflows(self.vae.dtype):
            self.parts["vae"] = copy.deepcopy(self.vae).float()

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> StableDiffusionXL:
        """Move all parts with weights; returns itself. A VAE that overflows in float16 stays in float32."""
        for name, module in self.modules.items():
            kept = name == "vae" and dtype is not None and self._overflows(dtype)
            nn.Module.to(module, device=device, dtype=torch.float32 if kept else dtype)
        return self

    def problems(self) -> list[str]:
        found, unet = super().problems(), self.unet.config
        if unet.addition_embed_type != "text_time":
            return [*found, "the UNet takes no pooled text and sizes: it is not one of SDXL"]
        pooled = int(self.parts["text_encoder_2"].config.projection_dim)
        read = int(unet.projection_class_embeddings_input_dim)
        if read != pooled + SIZES * unet.addition_time_embed_dim:
            found.append(
                f"the UNet reads {read} numbers beside the text, expected {pooled} of the pooled text and {SIZES} "
                f"sizes of {unet.addition_time_embed_dim} each: it is a refiner, or of another model"
            )
        first, second = self.tokenizers
        if first.model_max_length != second.model_max_length or first.get_vocab() != second.get_vocab():
            found.append("the two tokenizers cut sentences in different ways: their files are of different models")
        if getattr(self.vae.config, "latents_mean", None) is not None:
            found.append("a VAE with means and deviations of its own is not supported")
        return found

    def encode_tokens(self, tokens: Sequence[Tensor]) -> TextEncoding:
        """embeds: the states before the last layer of both encoders, (batch, length, width 1 + width 2), without the
        final normalisation. pooled: the second encoder's projected state at the first end mark, (batch, width 2).

        The end mark is found here: published configs say eos_token_id 2, for which transformers takes the largest token
        number instead, and that is a learned word where there is one.
        """
        one, two = (
            encoder(ids.to(self.device), output_hidden_states=True)
            for encoder, ids in zip(self.text_encoders, tokens, strict=True)
        )
        ends = tokens[1].to(two.last_hidden_state.device).eq(self.tokenizers[1].eos_token_id).int().argmax(-1)
        states = two.last_hidden_state[torch.arange(len(ends), device=ends.device), ends]
        pooled = self.parts["text_encoder_2"].text_projection(states)
        return TextEncoding(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), pooled)

    def time_ids(
        self, height: int, width: int, original: tuple[int, int] | None = None, crop: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """What tells the UNet of sizes, to be given as `Conditioning.extras["time_ids"]`.

        Args:
            height, width: of the picture that is made, in pixels.
            original: height and width of the picture before it was made smaller and cropped; the same by default.
            crop: top and left of the crop.

        Returns:
            (1, 6) float32: original height and width, top, left, height, width.

        Source: Podell et al., section 2.2.
        """
        return torch.tensor([[*(original or (height, width)), *crop, height, width]], dtype=torch.float32)

    def predict(
        self, latents: Tensor, timestep: Tensor | float, conditioning: Conditioning, *, guidance: float = 1.0
    ) -> Tensor:
        """As `Base.predict`. Sizes are those of the latents, whole and not cropped, unless `extras` has "time_ids"."""
        if conditioning.pooled is None:
            raise ThisnessError("conditioning has no pooled text, which SDXL reads: encode sentences with this base")
        sizes = conditioning.extras.get("time_ids")
        added = {
            "text_embeds": conditioning.pooled,
            "time_ids": self._whole(latents) if sizes is None else sizes.to(latents.device),
        }
        return self.unet(
            latents,
            timestep,
            encoder_hidden_states=conditioning.embeds,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def to_pipeline(self) -> Any:
        """The stock pipeline. In float16 with a VAE of its own there: diffusers expects it so, and converts it."""
        with quiet():
            from diffusers import StableDiffusionXLPipeline

        parts = {name: part for name, part in self.parts.items() if name != "scheduler"}
        if self.vae.dtype != self.dtype:
            parts["vae"] = copy.deepcopy(self.vae).to(self.dtype)
        return StableDiffusionXLPipeline(
            **parts,
            scheduler=copy.deepcopy(self.scheduler),
            force_zeros_for_empty_prompt=self.zero_negative,
            add_watermarker=False,
        )

    def _whole(self, latents: Tensor) -> Tensor:
        """latents: (batch, C, h, w) -> (batch, 6)."""
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        key = (height, width, latents.device)
        if key not in self._told:  # moving six numbers in every step would wait for the device
            self._told[key] = self.time_ids(height, width).to(latents.device)
        return self._told[key].expand(len(latents), SIZES)

    def _overflows(self, dtype: torch.dtype) -> bool:
        return dtype == torch.float16 and bool(self.vae.config.force_upcast)
