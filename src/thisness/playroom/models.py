"""Architectures of the embedded models: diffusers' and transformers' own classes, sized for a laptop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .captions import ATTRIBUTES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection, ViTModel

SIZE = 128
LATENT_CHANNELS = 8
LATENT_SIZE = 16
TEXT_LENGTH = 48
TEXT_WIDTH = 192


def make_vae(latent_channels: int = LATENT_CHANNELS, **changes: Any) -> AutoencoderKL:
    """8x down, 1.7 M parameters."""
    from diffusers import AutoencoderKL

    channels = (16, 32, 64, 96)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        force_upcast=False,
        **changes,
    )


def make_text_encoder(
    tokenizer: CLIPTokenizer, width: int = TEXT_WIDTH, layers: int = 3, hidden: int = 512
) -> CLIPTextModel:
    """48 positions. width: of the states; hidden: of the MLPs."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """6.4 M parameters: self- and cross-attention at 16x16 (decoder), 8x8 and 4x4."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 160),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # diffusers' name for the number of heads
        resnet_time_scale_shift="scale_shift",
    )


def make_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR and trailing spacing."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def make_clip_vision() -> CLIPVisionModelWithProjection:
    """Six layers, width 160, 64 patches of 16 px."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=16,
            projection_dim=TEXT_WIDTH,
            attn_implementation="eager",  # the fused kernel's backward is slow on a CPU
        )
    )


def save_clip(folder: Path, vision: CLIPVisionModelWithProjection, words: nn.Module) -> None:
    """A folder that `CLIPVisionModelWithProjection.from_pretrained` reads, with the text side's projection beside it.

    Args:
        words: with `projection` (192 to 192, no bias) and the parameter `logit_scale`.
    """
    from ..files import save_tensors
    from .recipes.ruler import write_preprocessor

    vision.save_pretrained(folder)
    tensors = {"text_projection.weight": words.get_parameter("projection.weight").detach()}
    tensors["logit_scale"] = words.get_parameter("logit_scale").detach()
    save_tensors(folder / "text_projection.safetensors", tensors)
    write_preprocessor(folder, "CLIPImageProcessor")


def load_vision_and_words(folder: Path, vision: CLIPVisionModelWithProjection, words: nn.Module) -> None:
    """Fill both from a folder of `save_clip`."""
    from transformers import CLIPVisionModelWithProjection

    from ..files import load_tensors

    vision.load_state_dict(CLIPVisionModelWithProjection.from_pretrained(folder).state_dict())
    extra = load_tensors(folder / "text_projection.safetensors")
    words.load_state_dict(
        {"projection.weight": extra["text_projection.weight"].float(), "logit_scale": extra["logit_scale"].float()}
    )


def load_clip(weights: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """`playroom-clip` whole: the shipped vision tower and projections, with the text encoder of `playroom-sd`, which
    is shipped once.

    Args:
        weights: folder that holds `clip` and `playroom-sd`.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from ..files import load_tensors

    vision = CLIPVisionModelWithProjection.from_pretrained(weights / "clip")
    text = CLIPTextModel.from_pretrained(weights / "playroom-sd" / "text_encoder")
    config = CLIPConfig(
        text_config=text.config.to_dict(),
        vision_config=vision.config.to_dict(),
        projection_dim=vision.config.projection_dim,
    )
    clip = CLIPModel(config)
    extra = load_tensors(
        weights / "clip" / "text_projection.safetensors",
        expect={"text_projection.weight": tuple(clip.text_projection.weight.shape), "logit_scale": ()},
    )
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in text.state_dict().items()}
    state |= dict(vision.state_dict())
    state |= {name: value.float() for name, value in extra.items()}
    clip.load_state_dict(state)
    return clip.eval(), CLIPTokenizer.from_pretrained(weights / "playroom-sd" / "tokenizer")


def make_identity_encoder() -> ViTModel:
    """Six layers, width 128, 64 patches of 16 px: DINO v1's architecture."""
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=16,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )


class Reader(nn.Module):
    """Reads every attribute of `captions.ATTRIBUTES` out of a picture: a transformers backbone, a neck, one linear
    head per attribute.

    Two of them exist: the *teacher* (a ResNet on 64 px, whose features guide the UNet's training) and the *judge* (a
    RegNet-Y on 96 px, never used in training anything).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        from transformers import RegNetConfig, RegNetModel, ResNetConfig, ResNetModel

        self.kind = kind
        self.backbone: Any
        if kind == "teacher":
            self.size, widths = 64, [32, 64, 96, 160]
            self.backbone = ResNetModel(
                ResNetConfig(
                    embedding_size=32,
                    hidden_sizes=widths,
                    depths=[1, 1, 1, 1],
                    layer_type="basic",
                    downsample_in_first_stage=False,
                )
            )
            self.backbone.embedder.pooler = nn.Identity()
            grid = 4
        elif kind == "judge":
            self.size, widths = 96, [48, 64, 128, 160]
            config = RegNetConfig(
                embedding_size=32,
                hidden_sizes=widths,
                depths=[1, 1, 1, 1],
                groups_width=1024,  # wider than any stage: no groups, which learn slowly at this size
                layer_type="y",
            )
            self.backbone = RegNetModel(config)
            self.backbone.pooler = nn.Identity()
            grid = 3
        else:
            raise ValueError(f"a reader is a teacher or a judge, not {kind!r}")
        width = 320 if kind == "teacher" else 256
        self.neck = nn.Linear(widths[-1] * grid * grid, width)
        self.heads = nn.ModuleDict(
            {name.replace(" ", "_"): nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def _resized(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # convolutions train half as fast again in this layout
        if x.shape[-1] == self.size:
            return x
        if x.shape[-1] % self.size == 0:
            return F.avg_pool2d(x, x.shape[-1] // self.size)
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)

    def features(self, x: Tensor, stage: int = 3) -> Tensor:
        """The teacher's feature map after a stage (1 to 4). x: (B, 3, H, W) in [-1, 1] -> stage 3: (B, 96, 8, 8)."""
        h = self.backbone.embedder(self._resized(x))
        for layer in self.backbone.encoder.stages[:stage]:
            h = layer(h)
        return h

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (B, 3, H, W) in [-1, 1] -> logits (B, values) per attribute."""
        h = self.backbone(self._resized(x)).last_hidden_state
        h = F.gelu(self.neck(h.flatten(1)))
        return {name: self.heads[name.replace(" ", "_")](h) for name in ATTRIBUTES}

    def save(self, folder: Path) -> None:
        from ..files import save_tensors, write_json

        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(
            folder / "model.safetensors",
            {
                name: value.half().contiguous() if value.is_floating_point() else value
                for name, value in self.state_dict().items()
            },
        )
        write_json(
            folder / "config.json",
            {"kind": self.kind, "attributes": {name: list(values) for name, values in ATTRIBUTES.items()}},
        )

    @classmethod
    def load(cls, folder: Path) -> Reader:
        from ..files import load_tensors

        reader = cls(json.loads((folder / "config.json").read_text())["kind"])
        tensors = load_tensors(folder / "model.safetensors")
        reader.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        )
        return reader.eval()


@torch.no_grad()
def read(reader: Reader, images: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
    """What the reader reads. images: (N, 3, H, W) in [-1, 1] -> per attribute an index (N,)."""
    out: dict[str, list[Tensor]] = {name: [] for name in ATTRIBUTES}
    for part in images.split(batch_size):
        for name, logits in reader(part).items():
            out[name].append(logits.argmax(1))
    return {name: torch.cat(parts) for name, parts in out.items()}
