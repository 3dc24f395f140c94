"""A base: the parts of one text-to-image model, and the few things in which families of models differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError, raise_all
from .registry import Facts
from .signature import signature

if TYPE_CHECKING:
    from ..conditioning import Conditioning
    from ..prompt import FilledPrompt, TokenSpans

FLOW = "flow_prediction"  # the prediction type of flow matching: noise minus picture


@dataclass(frozen=True)
class Part:
    """One part of a family's pipeline.

    Attributes:
        name: its folder and its name in `model_index.json`.
        kind: "model" (has weights), "tokenizer" or "scheduler".
        library: "diffusers" or "transformers".
        classes: the classes that may be loaded; empty: any scheduler of the library.
    """

    name: str
    kind: str
    library: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextEncoding:
    """What the text encoders make of tokens.

    Attributes:
        embeds: (batch, length, width), what the denoiser's attention reads.
        pooled: (batch, width) or None.
        mask: (batch, length) of 0 and 1, or None where the denoiser reads every position.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None


class Base(ABC):
    """The parts of one model. A family of models is a subclass, registered in `loading.FAMILIES`.

    Attributes:
        name: a registered name, a hub id, or the name of its folder.
        facts: what is registered of it, or defaults.
        parts: every part by its name in the pipeline.
        signature: hash of architecture, vocabulary and weights, taken when the base was made; see `signature`.
        resolution: side in pixels that it was trained at.
        prediction_type: what the denoiser predicts: "epsilon", "v_prediction" or "flow_prediction".
        steps, guidance: what pictures are made with unless told otherwise.
        settings: the pipeline's own, as in model_index.json.
        zero_negative: an empty negative prompt is zeros instead of the encoded empty sentence.
        embedded_guidance: the denoiser takes the guidance scale as an input; there is no branch without the sentence.
    """

    family: ClassVar[str]
    pipeline_class: ClassVar[str]
    part_list: ClassVar[tuple[Part, ...]]
    zero_negative: bool = False
    embedded_guidance: bool = False
    _runs_on: torch.device | None = None

    def __init__(
        self,
        parts: Mapping[str, Any],
        name: str,
        facts: Facts | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Put a model together. Its parts are put into evaluation mode; they are shared, not copied.

        Raises:
            ConfigurationError: the parts do not fit together; every misfit is listed.
        """
        missing = [part.name for part in self.part_list if parts.get(part.name) is None]
        raise_all([f"{part} is missing" for part in missing], lead=name)
        self.parts = {part.name: parts[part.name] for part in self.part_list}
        self.name = name
        self.settings = dict(settings or {})
        self.facts = facts or Facts(name=name, family=self.family)
        raise_all([*self._token_problems(), *self.problems()], lead=name)
        for module in self.modules.values():
            module.eval().requires_grad_(False)
        self.prediction_type = str(self.scheduler.config.get("prediction_type", FLOW))
        if facts is not None:
            facts.check(self.resolution, self.prediction_type)
        self.signature = signature(self.modules, self._of_kind("tokenizer"), self.prediction_type)

    # --- parts ---

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts with weights, by name."""
        return self._of_kind("model")

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """One for each text encoder; the first counts the positions of `Conditioning.embeds`."""
        return tuple(self._of_kind("tokenizer").values())

    @property
    def tokenizer(self) -> Any:
        """The first tokenizer."""
        return self.tokenizers[0]

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """In the order of `tokenizers`."""
        return tuple(module for name, module in self.modules.items() if name.startswith("text_encoder"))

    @property
    def text_encoder(self) -> Any:
        """The first text encoder."""
        return self.text_encoders[0]

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The network that is called in every step."""

    @property
    def vae(self) -> Any:
        """Between pictures and latents."""
        return self.parts["vae"]

    @property
    def scheduler(self) -> Any:
        """The base's own scheduler. It is never stepped: the sampler works on copies."""
        return self.parts["scheduler"]

    @property
    def device(self) -> torch.device:
        """Where the denoiser is, or where it is brought to run."""
        return (
            self._runs_on or next(self.denoiser.parameters()).device
        )  # diffusers' own property walks through the whole model

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser."""
        return next(self.denoiser.parameters()).dtype

    @property
    def steps(self) -> int:
        """Sampling steps unless told otherwise."""
        return self.facts.steps

    @property
    def guidance(self) -> float:
        """Classifier-free guidance unless told otherwise."""
        return self.facts.guidance

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Base:
        """Move all parts with weights; returns itself."""
        for module in self.modules.values():
            nn.Module.to(module, device=device, dtype=dtype)  # not diffusers' own, which warns of what it does not do
        return self

    def offload(self, device: str | torch.device) -> Base:
        """Keep all parts with weights on the CPU, and bring each to a device only while it runs; returns itself.

        The largest part alone must fit on the device. Each part goes back when the next one in the list runs.
        """
        from accelerate import cpu_offload_with_hook

        self.to("cpu")
        hook = None
        for module in self.modules.values():
            _, hook = cpu_offload_with_hook(module, device, prev_module_hook=hook)
        self._runs_on = torch.device(device)
        return self

    def branches(self, guidance: float | None) -> bool:
        """Whether a scale takes a second branch, without the sentence (classifier-free guidance)."""
        return not self.embedded_guidance and (guidance or 0.0) > 1

    def tokenize(self, prompt: FilledPrompt) -> list[TokenSpans]:
        """A sentence's tokens for each tokenizer. Raises PromptError as `FilledPrompt.tokenize`."""
        return [prompt.tokenize(tokenizer) for tokenizer in self.tokenizers]

    # --- in what families differ ---

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Side in pixels that it was trained at."""

    @abstractmethod
    def problems(self) -> list[str]:
        """What of the parts does not fit together."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one picture's latents, without the batch.

        Raises:
            ConfigurationError: sides in pixels that the model cannot make.
        """

    @abstractmethod
    def encode_tokens(self, tokens: Sequence[Tensor]) -> TextEncoding:
        """Run the text encoders; gradients flow.

        Args:
            tokens: for each tokenizer the token numbers, (batch, length).
        """

    @abstractmethod
    def predict(
        self, latents: Tensor, timestep: Tensor | float, conditioning: Conditioning, *, guidance: float = 1.0
    ) -> Tensor:
        """Call the denoiser once; gradients flow.

        Args:
            latents: (batch, *latent_shape), as the scheduler scales the denoiser's input.
            timestep: one for all rows, or (batch,).
            conditioning: of `batch` rows.
            guidance: for models that take the scale as an input; the others ignore it.

        Returns:
            (batch, *latent_shape), of `prediction_type`.
        """

    @abstractmethod
    def predicted_clean(self, latents: Tensor, prediction: Tensor, timestep: Tensor | float) -> Tensor:
        """The clean latents that a prediction amounts to.

        Args:
            latents: what the denoiser was given, (batch, *latent_shape).
            prediction: what it answered.
            timestep: one for all rows.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """latents: (batch, *latent_shape) -> pictures (batch, 3, height, width), about [-1, 1]."""

    @abstractmethod
    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures to latents.

        Args:
            images: (batch, 3, height, width) in [-1, 1].
            generator: draws from the encoder's distribution; None takes its mean.
        """

    @abstractmethod
    def to_pipeline(self) -> Any:
        """The stock diffusers pipeline over the same parts, with a scheduler of its own."""

    # --- making ---

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str = "pipeline", facts: Facts | None = None) -> Base:
        """A base over the parts of a diffusers pipeline, shared with it.

        Args:
            pipe: of a class that a family knows. Its safety checker, if it has one, is not used.
            name: what to call it in records.

        Raises:
            ConfigurationError: no family knows this class of pipeline, or its parts do not fit together.
        """
        from .loading import family_of

        return family_of(type(pipe).__name__)(pipe.components, name, facts, pipe.config)

    def _of_kind(self, kind: str) -> dict[str, Any]:
        return {part.name: self.parts[part.name] for part in self.part_list if part.kind == kind}

    def _token_problems(self) -> list[str]:
        problems = []
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            rows = int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
            if not 0 <= rows - len(tokenizer) <= rows // 2:
                problems.append(
                    f"the tokenizer knows {len(tokenizer)} tokens but the text encoder {rows}: "
                    "its files are missing or of another model"
                )
        return problems

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.resolution} px, {self.prediction_type}, {self.signature})"


def check_sides(height: int, width: int, multiple: int, largest: int = 4096) -> None:
    """Refuse sides in pixels that a model cannot make.

    Raises:
        ConfigurationError: not a multiple of `multiple`, or not in [multiple, largest]; the nearest that is, is named.
    """
    wrong = []
    for name, side in (("height", height), ("width", width)):
        if side % multiple or not multiple <= side <= largest:
            fitting = min(max(round(side / multiple), 1), largest // multiple) * multiple
            wrong.append(f"{name} {side} must be a multiple of {multiple} up to {largest}: try {fitting}")
    raise_all(wrong, ConfigurationError)


@contextmanager
def instead(base: Base, **mine: Any) -> Iterator[None]:
    """Put methods of one's own in the place of a base's for the length of a `with`; those of an outer one come back."""
    before = {name: base.__dict__[name] for name in mine if name in base.__dict__}
    base.__dict__.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del base.__dict__[name]
        base.__dict__.update(before)
