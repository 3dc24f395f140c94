"""What differs between the architectures of encoders; transformers' own classes, one small class here for each kind.

A new kind: one subclass, one entry in FAMILIES under the `model_type` of its config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ...bases.quiet import quiet
from ...errors import ArtefactError
from ...files import listed

if TYPE_CHECKING:
    from torch import Tensor


TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "special_tokens_map.json")


class Features(NamedTuple):
    """What a model says of a batch of pictures.

    Args:
        pooled: (n, d) the model's own vector of a picture; None where it has none but its tokens.
        tokens: (n, prefix + h * w, e) last hidden state.
        prefix: tokens that are no patches (class token, registers).
        grid: (h, w).
    """

    pooled: Tensor | None
    tokens: Tensor
    prefix: int
    grid: tuple[int, int]


class Family:
    """A kind of encoder.

    Attributes:
        poolings: how tokens can become one vector; the first is the default. "projected": the model's own, as
            compared with text; "cls": class token; "mean": mean of all tokens, the class token among them;
            "patches": mean of the patch tokens.
        has_text: whether it has a text side.
        classes: names of the classes of transformers, vision and text in one.
        whole_number_is_square: see `Preprocessing.from_config`.
        allowed_missing: beginnings of names of weights that a checkpoint may lack because they are not used.
    """

    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "patches")
    has_text: ClassVar[bool] = False
    class_name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    whole_number_is_square: ClassVar[bool] = True

    def load(self, folder: Path) -> Any:
        """The model in float32, on the CPU, from safetensors.

        Raises:
            ArtefactError: weights are missing or of other shapes, all listed; or transformers cannot read them.
        """
        import torch
        import transformers
        from safetensors import SafetensorError

        with quiet():
            try:
                model, info = getattr(transformers, self.class_name).from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    **self.options,
                )
            except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
                line = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise ArtefactError(
                    f"{folder.name}: transformers cannot load it as {self.class_name} ({line})"
                ) from error
        missing = sorted(name for name in info["missing_keys"] if "position_ids" not in name)
        missing += sorted(str(entry[0]) for entry in info["mismatched_keys"])
        if missing:
            raise ArtefactError(
                f"{folder.name}: weights missing or of another shape: {listed(missing)}: fetch it again"
            )
        return model.eval().requires_grad_(False)

    def files(self, folder: Path) -> list[Path]:
        """What decides the model's numbers: hashed into its identity."""
        found = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
        return found + ([folder / name for name in TOKENIZER if (folder / name).is_file()] if self.has_text else [])

    def tokenizer_folder(self, folder: Path) -> Path:
        return folder

    def features(self, model: Any, pixels: Tensor) -> Features:
        """pixels: (n, 3, height, width), preprocessed."""
        raise NotImplementedError

    def text(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (n, length), mask 0 at the padding -> (n, d) in the space of "projected" pictures."""
        raise NotImplementedError

    def text_length(self, model: Any) -> int:
        """Tokens that the text side takes."""
        return int(model.config.text_config.max_position_embeddings)


class Clip(Family):
    """CLIPModel: image embeddings after the visual projection; tokens before the last normalisation."""

    poolings: ClassVar[tuple[str, ...]] = ("projected", "cls", "mean", "patches")
    has_text = True
    class_name = "CLIPModel"
    whole_number_is_square = False
    prefix: ClassVar[int] = 1

    def features(self, model: Any, pixels: Tensor) -> Features:
        said = model.get_image_features(pixel_values=pixels)  # an output object since transformers 5
        return Features(
            said.pooler_output, said.last_hidden_state, self.prefix, _grid(model.config.vision_config, pixels)
        )

    def text(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        return model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output


class PlayroomClip(Clip):
    """The embedded CLIP: its vision tower and projections lie in one folder, its text tower in `playroom-sd`'s."""

    def load(self, folder: Path) -> Any:
        from ...playroom.models import load_clip

        with quiet():
            return load_clip(folder.parent)[0].float().eval().requires_grad_(False)

    def files(self, folder: Path) -> list[Path]:
        text, tokens = self._text(folder), self.tokenizer_folder(folder)
        more = [text / "config.json", *sorted(text.glob("*.safetensors")), tokens / "tokenizer.json"]
        return [folder / "config.json", *sorted(folder.glob("*.safetensors")), *more]

    def tokenizer_folder(self, folder: Path) -> Path:
        return folder.parent / "playroom-sd" / "tokenizer"

    @staticmethod
    def _text(folder: Path) -> Path:
        return folder.parent / "playroom-sd" / "text_encoder"


class ClipVision(Family):
    """CLIPVisionModelWithProjection: the image side of CLIP alone."""

    poolings = ("projected", "cls", "mean", "patches")
    class_name = "CLIPVisionModelWithProjection"
    whole_number_is_square = False

    def features(self, model: Any, pixels: Tensor) -> Features:
        said = model(pixel_values=pixels)
        return Features(said.image_embeds, said.last_hidden_state, 1, _grid(model.config, pixels))


class Siglip(Clip):
    """SiglipModel, of either generation at a fixed size: attention-pooled; no class token."""

    poolings = ("projected", "mean")
    class_name = "SiglipModel"
    whole_number_is_square = True
    prefix = 0

    def text(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        return model.get_text_features(input_ids=ids).pooler_output  # trained with the padding in sight


class Dual(Clip):
    """VisionTextDualEncoderModel: any vision and any text transformer, each with a projection."""

    class_name = "VisionTextDualEncoderModel"


class VisionTransformer(Family):
    """ViTModel: DINO v1."""

    class_name = "ViTModel"
    options = {"add_pooling_layer": False}

    def features(self, model: Any, pixels: Tensor) -> Features:
        config = model.config
        native = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        more = {} if tuple(pixels.shape[-2:]) == (native, native) else {"interpolate_pos_encoding": True}
        said = model(pixel_values=pixels, **more)
        return Features(None, said.last_hidden_state, 1, _grid(config, pixels))


class Dino2(Family):
    """Dinov2Model; it interpolates its positions by itself. Registers are no patches."""

    class_name = "Dinov2Model"

    def features(self, model: Any, pixels: Tensor) -> Features:
        prefix = 1 + int(getattr(model.config, "num_register_tokens", 0) or 0)
        return Features(None, model(pixel_values=pixels).last_hidden_state, prefix, _grid(model.config, pixels))


class Dino2Registers(Dino2):
    class_name = "Dinov2WithRegistersModel"


class Dino3(Dino2):
    class_name = "DINOv3ViTModel"


class Convolutional(Family):
    """ResNetModel, RegNetModel, ConvNextModel: the pooled last map; its places are the patches."""

    poolings = ("projected", "mean")

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name  # type: ignore[misc]

    def features(self, model: Any, pixels: Tensor) -> Features:
        said = model(pixel_values=pixels)
        last = said.last_hidden_state  # (n, d, h, w)
        grid = (int(last.shape[2]), int(last.shape[3]))
        return Features(said.pooler_output.flatten(1), last.flatten(2).transpose(1, 2), 0, grid)


FAMILIES: dict[str, Family] = {
    "clip": Clip(),
    "playroom-clip": PlayroomClip(),
    "clip_vision_model": ClipVision(),
    "siglip": Siglip(),
    "vision-text-dual-encoder": Dual(),
    "vit": VisionTransformer(),
    "dinov2": Dino2(),
    "dinov2_with_registers": Dino2Registers(),
    "dinov3_vit": Dino3(),
    "resnet": Convolutional("ResNetModel"),
    "regnet": Convolutional("RegNetModel"),
    "convnext": Convolutional("ConvNextModel"),
}
"""By `model_type`; "playroom-clip" by what lies in its folder."""


def _grid(config: Any, pixels: Tensor) -> tuple[int, int]:
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    return int(pixels.shape[-2]) // patch, int(pixels.shape[-1]) // patch
