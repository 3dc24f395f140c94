"""What AlignGen and OminiControl are trained by: the flow loss of a batch, whatever the data.

    trainables = Trainables.fresh(base, rank=16, dem="lite")            # S*, the module, low-rank weights
    training = FlowTraining(base, trainables, TrainingConfig())         # TrainingConfig.ominicontrol() for the other
    optimizer = AdamW(trainables.parameter_groups())
    with training.attached():                                           # for as long as the training lasts
        for ...:
            parts = training.loss(Batch(targets, references, sentences, names, redux=tokens), rng)
            parts["loss"].backward()
    save_weights(FOLDER, base, trainables, config)                      # what `weights=FOLDER` of the method reads

Per sample, AlignGen (2025), sections 3 and 4.1, and the official code of OminiControl:

    x_t = (1 - t) x0 + t eps, t = sigmoid(n), n ~ N(level, 1); loss = mean || v(x_t, t) - (eps - x0) ||^2 on noisy rows
    the reference's tokens are those of a black picture with probability `drop`; Redux tokens are always the true ones
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from ..attention import attached
from ..bases import Flux
from ..bases.flux import PATCH, pack
from ..conditioning import Conditioning
from ..errors import ConfigurationError
from ..files import directory, save_tensors, write_json
from ..prompt import FilledPrompt
from .aligngen_parts import (
    Backend,
    DeviationExtraction,
    Star,
    concept_span,
    deviated,
    read_parts,
    spliced,
    states_with_star,
)
from .aligngen_references import SelectiveReferences
from .flux_references import Mode, Reference, RowLora, fresh_lora
from .ominicontrol import black_latents, reference_latents, shifted_ids
from .zero_shot import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from .redux import Redux

NEUTRAL = "this"  # the word from whose row S* starts
RATES = {"lora": 1e-4, "dem": 5e-5, "star": 1e-3}
"""Learning rates of AdamW; S* is learned in units of T5's table (`Star`)."""


@dataclass(frozen=True)
class TrainingConfig:
    """What decides the loss besides the data.

    Args:
        mode: "joint" or "independent".
        drop: probability that a reference's tokens are those of a black picture.
        drop_text: probability that a sentence is empty.
        shift, compact: where references stand (`shifted_ids`).
        level: mean of the logit of t; 0 in the papers.
        star, dem, selective: the three parts, which an ablation switches off. Without S* the module changes the first
            token of the name.
        replace_all: the module's outputs take the place of the name's tokens, too (figure 7).
        backend: of attention under the selective mask.
        guidance: what a guided model (dev) reads as its guidance.
        checkpoint: run T5 a second time in the backward pass instead of keeping what it computed.

    Raises:
        ConfigurationError: probabilities out of range; all of it at once.
    """

    mode: Mode = "joint"
    drop: float = 0.5
    drop_text: float = 0.0
    shift: str = "-w"
    compact: int = 1
    level: float = 0.0
    star: bool = True
    dem: bool = True
    selective: bool = True
    replace_all: bool = False
    backend: Backend = "split"
    guidance: float = 1.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        wrong = [f"{key} {value}" for key in ("drop", "drop_text") if not 0 <= (value := getattr(self, key)) <= 1]
        wrong += [f"mode {self.mode!r}"] if self.mode not in ("joint", "independent") else []
        if wrong:
            raise ConfigurationError(
                f"{'; '.join(wrong)}: expected probabilities in 0 ... 1, mode joint or independent"
            )

    @classmethod
    def ominicontrol(cls, **changes: Any) -> TrainingConfig:
        """As the official code of OminiControl trains subjects."""
        plain = {"star": False, "dem": False, "selective": False, "drop": 0.1, "drop_text": 0.1}
        return cls(**plain | changes)

    @property
    def extended(self) -> bool:
        """Whether the text has any part in it that OminiControl does not have."""
        return self.star or self.dem or self.selective


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs of pictures of one thing.

    Args:
        targets: (B, C, h, w) latents to make, in the denoiser's scale.
        references: (B, C, h', w') latents of the other pictures; None: read from `pictures`.
        sentences: what each target shows; each holds its name.
        names: what the thing is called there, "robot"; read where any of AlignGen's parts is on.
        redux: (B, T, d) Redux tokens of the references, never black; None: read from `pictures`.
        pictures: the references themselves; slow, for short runs.
        text: the sentences' states and pooled vectors, where S* is off; else T5 runs.
        weights: (B, 1, h, w) by which the loss at each latent position counts; None: all alike.
    """

    targets: Tensor
    references: Tensor | None
    sentences: Sequence[str]
    names: Sequence[str] = ()
    redux: Tensor | None = None
    pictures: Sequence[Image] = ()
    text: Conditioning | None = None
    weights: Tensor | None = None


class Trainables(nn.Module):
    """Low-rank weights, and for AlignGen S* and the deviation extraction module; all float32.

    Args:
        low_rank: "MODULE.lora_A.weight" and "MODULE.lora_B.weight" by module of the transformer.
        dem, star: None where they are not trained.
    """

    def __init__(
        self, low_rank: Mapping[str, Tensor], dem: DeviationExtraction | None = None, star: Star | None = None
    ) -> None:
        super().__init__()
        self.names = list(low_rank)
        self.weights = nn.ParameterList([each.detach().float() for each in low_rank.values()])
        self.dem, self.star = dem, star

    @classmethod
    def fresh(
        cls, base: Flux, rank: int = 16, preset: str = "full", dem: str | Mapping[str, int] | None = "lite",
        star: bool = True, seed: int = 0, word: str = NEUTRAL,
    ) -> Trainables:  # fmt: skip
        """Without effect at first, but for S*, which is another `word` in the sentence.

        Args:
            base: whose layers and widths.
            rank, preset: of the low-rank weights (`fresh_lora`).
            dem: "lite", "full", sizes (inner, heads, hidden), or None.
            star: whether there is an S*.
            seed: of what is drawn; torch's global state stays.
            word: S* starts from the first of its tokens.
        """
        width = base.parts["text_encoder_2"].config.d_model
        module = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if dem == "lite":
                module = DeviationExtraction.lite(width)
            elif dem is not None:
                module = DeviationExtraction(width, **({} if isinstance(dem, str) else dem))
        made = None
        if star:
            number = base.tokenizers[0](word, add_special_tokens=False)["input_ids"][0]
            made = Star.beside(base.parts["text_encoder_2"].get_input_embeddings().weight, number)
        return cls(fresh_lora(base.transformer, preset, rank, seed), module, made).to(base.device)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Trainables:
        """Those of a folder of weights: what `tensors` and `config` gave."""
        low_rank = {k.removeprefix("transformer."): each for k, each in tensors.items() if k.startswith("transformer.")}
        return cls(low_rank, *read_parts(tensors, config))

    @property
    def low_rank(self) -> dict[str, Tensor]:
        """By name, the parameters themselves."""
        return dict(zip(self.names, self.weights, strict=True))

    @property
    def rank(self) -> int:
        return len(self.weights[0])

    def tensors(self) -> dict[str, Tensor]:
        """As they are saved: `transformer.` in the layout of diffusers, `dem.`, `star.`."""
        found = {f"transformer.{name}": each.detach() for name, each in self.low_rank.items()}
        if self.dem is not None:
            found |= {f"dem.{name}": each.detach() for name, each in self.dem.state_dict().items()}
        if self.star is not None:
            found |= {f"star.{name}": each.detach() for name, each in self.star.state_dict().items()}
            found["star.scale"] = torch.tensor([self.star.scale])
        return {name: each.float().cpu().contiguous() for name, each in found.items()}

    def config(self) -> dict[str, Any]:
        """Sizes, for `config.json`."""
        sizes = None if self.dem is None else self.dem.sizes()
        return {"rank": self.rank, "alpha": self.rank, "dem": sizes, "star": self.star is not None}

    def parts(self) -> dict[str, nn.Module]:
        """By name, what is there; for `training.Task.modules`."""
        found = {"lora": self.weights, "dem": self.dem, "star": self.star}
        return {name: module for name, module in found.items() if module is not None}

    def parameter_groups(
        self, rates: Mapping[str, float] | None = None, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """For an optimizer: no weight decay on S*, norms and biases. rates: by "lora", "dem", "star"."""
        rates = {**RATES, **(rates or {})}
        groups = []
        for name, module in self.parts().items():
            for decays in (True, False):
                of = [each for each in module.parameters() if (each.ndim > 1) == decays]
                if of:
                    groups.append({"params": of, "lr": rates[name], "weight_decay": weight_decay * decays})
        return groups


class FlowTraining:
    """The loss of batches on a base that stays as it is.

    Args:
        base: a FLUX; its weights are frozen by `attached`.
        trainables: what gets gradients.
        config: how.
        redux: reads pictures of batches without Redux tokens.

    Raises:
        ConfigurationError: a part that the config switches on is not among the trainables.
    """

    def __init__(
        self, base: Flux, trainables: Trainables, config: TrainingConfig | None = None, redux: Redux | None = None
    ) -> None:
        self.base, self.trainables, self.config, self.redux = base, trainables, config or TrainingConfig(), redux
        missing = [name for name in ("star", "dem") if getattr(self.config, name) and getattr(trainables, name) is None]
        if missing:
            raise ConfigurationError(f"{' and '.join(missing)} to be trained, but not among the trainables")
        self.references = SelectiveReferences(
            [], RowLora(trainables.low_rank), self.config.mode, backend=self.config.backend, cache=False,
            selective=self.config.selective,
        )  # fmt: skip
        self._black: dict[int, Tensor] = {}
        self._tokens: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...], list[int], list[int]]] = {}

    @contextmanager
    def attached(self) -> Iterator[FlowTraining]:
        """Put references on the transformer for the length of a `with`, and freeze the base; then undo both."""
        with ExitStack() as stack:
            for module in self.base.modules.values():
                for parameter in module.parameters():
                    if parameter.requires_grad:
                        parameter.requires_grad_(False)
                        stack.callback(parameter.requires_grad_, True)
            stack.enter_context(self.references.installed(self.base.transformer))
            stack.enter_context(attached(self.base.transformer, self.references))
            yield self

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """One batch's "loss", and for the log "delta", how far S* went in units of T5's table.

        Args:
            batch: of one size of targets and one of references.
            rng: on the CPU: what is dropped, noise levels and noise.

        Raises:
            PromptError: a sentence without its name, or too long.
            ConfigurationError: parts of the batch that are missing.
        """
        config, base, count = self.config, self.base, len(batch.targets)
        dropped = torch.rand(count, generator=rng) < config.drop
        empty = torch.rand(count, generator=rng) < config.drop_text
        times = torch.sigmoid(config.level + torch.randn(count, generator=rng)).to(base.device)
        noise = torch.randn(batch.targets.shape, generator=rng).to(base.device)
        clean = batch.targets.to(base.device, torch.float32)
        by_row = times[:, None, None, None]
        mixed = ((1 - by_row) * clean + by_row * noise).to(base.dtype)
        answer = self.velocity(batch, mixed, times, dropped, empty)
        errors = (answer.float() - (noise - clean)).square()
        if batch.weights is None:
            loss = errors.mean()
        else:
            weights = batch.weights.to(errors).expand_as(errors)
            loss = (errors * weights).sum() / weights.sum().clamp_min(1e-8)
        found = {"loss": loss}
        if config.star and self.trainables.star is not None:
            found["delta"] = self.trainables.star.delta.detach().norm()
        return found

    def velocity(
        self, batch: Batch, latents: Tensor, times: Tensor, dropped: Tensor | None = None, empty: Tensor | None = None
    ) -> Tensor:
        """The prediction for noisy latents, (B, C, h, w); within `attached`.

        Args:
            batch: of which targets are not read.
            latents: (B, C, h, w).
            times: (B,) noise levels in 0 ... 1.
            dropped, empty: (B,) bool, whose reference is black, whose sentence is empty.
        """
        self.place(batch, dropped)
        conditioning, rows = self.text(batch, empty)
        self.references.rows = [[each] for each in rows]
        return self.base.predict(latents, times * 1000, conditioning, guidance=self.config.guidance)

    def place(self, batch: Batch, dropped: Tensor | None = None) -> None:
        """Make the batch's pictures the references; those of the rows in `dropped` black."""
        base, latents = self.base, batch.references
        if latents is None:
            if not batch.pictures:
                raise ConfigurationError("a batch needs the latents of its references, or their pictures")
            side = int(batch.targets.shape[-1]) * base.pixels_per_token // PATCH
            latents = torch.stack([reference_latents(each, base, side) for each in batch.pictures])
        latents = latents.to(base.device, base.dtype)
        if dropped is not None and bool(dropped.any()):
            here = dropped.to(base.device)[:, None, None, None]
            latents = torch.where(here, self.black(int(latents.shape[-1])).to(latents), latents)
        rows, columns = (side // PATCH for side in latents.shape[-2:])
        ids = shifted_ids(self.config.shift, rows, columns, self.config.compact)
        self.references.items = [Reference(pack(latents), ids)]

    def black(self, side: int) -> Tensor:
        """Latents of a black picture of so many latent positions on a side, (1, C, side, side); computed once."""
        if side not in self._black:
            with torch.no_grad():
                pixels = side * self.base.pixels_per_token // PATCH
                self._black[side] = black_latents(self.base, pixels)[None]
        return self._black[side]

    def text(self, batch: Batch, empty: Tensor | None = None) -> tuple[Conditioning, list[list[int]]]:
        """What the transformer reads, and for each sentence the rows of S* and the name."""
        config, base = self.config, self.base
        without = empty if empty is not None else torch.zeros(len(batch.sentences), dtype=torch.bool)
        sentences = ["" if gone else text for text, gone in zip(batch.sentences, without.tolist(), strict=True)]
        names = list(batch.names) or [""] * len(sentences)
        if config.extended and not all(names):
            raise ConfigurationError("a batch needs the name of what each sentence is about")
        if len(names) != len(sentences):
            raise ConfigurationError(f"{len(sentences)} sentences and {len(names)} names: expected one for each")
        found = [self._tokenized(text, name) for text, name in zip(sentences, names, strict=True)]
        rows = [[*each[3]] for each in found]
        if batch.text is not None:
            if config.star:
                raise ConfigurationError("S* passes through T5: leave out the ready-made states of the sentences")
            conditioning = self._emptied(batch.text.to(base.device, base.dtype), without)
        else:
            conditioning = self._encoded([each[0] for each in found], [each[1] for each in found], rows)
        states = conditioning.embeds
        if config.dem:
            module = self.trainables.dem
            assert module is not None
            states = deviated(module, states, rows, self._redux(batch), every=config.replace_all)
        return replace(conditioning, embeds=states, spans=()), rows

    def _redux(self, batch: Batch) -> Tensor:
        if batch.redux is not None:
            return batch.redux.to(self.base.device)
        if self.redux is None or not batch.pictures:
            raise ConfigurationError("a batch needs Redux tokens; or pictures, and the training Redux")
        return self.redux.tokens(batch.pictures).to(self.base.device)

    def check(self, sentence: str, name: str) -> None:
        """Raises: PromptError: the name is not in the sentence, or both are too long with S*."""
        self._tokenized(sentence, name)

    def _tokenized(self, text: str, name: str) -> tuple[tuple[int, ...], tuple[int, ...], list[int], list[int]]:
        """T5's and CLIP's tokens, where S* is, and the concept's rows; sentences come again, so they are kept."""
        if (text, name) in self._tokens:
            return self._tokens[text, name]
        words, clip = self.base.tokenize(FilledPrompt.plain(text))
        ids = words.ids
        stars: list[int] = []
        rows: list[int] = []
        if text and self.config.extended:
            done = spliced(words, [concept_span(text, name)], self.base.tokenizers[0].pad_token_id)
            if self.config.star:
                ids, stars, rows = done.ids, list(done.stars), done.concepts[0]
            else:
                rows = [row - 1 for row in done.names[0]]
        if len(self._tokens) > 100_000:
            self._tokens.clear()
        self._tokens[text, name] = ids, clip.ids, stars, rows
        return self._tokens[text, name]

    def _encoded(
        self, t5: Sequence[Sequence[int]], clip: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
    ) -> Conditioning:
        base, device = self.base, self.base.device
        ids = torch.tensor([list(each) for each in t5], device=device)
        encoder = base.parts["text_encoder_2"]
        with torch.no_grad():
            pooled = base.pooled_text(torch.tensor([list(each) for each in clip], device=device))
        if not self.config.star:
            with torch.no_grad():
                return Conditioning(encoder(ids)[0].to(base.dtype), pooled.to(base.dtype))
        at = torch.zeros(ids.shape, dtype=torch.bool)
        for sentence, each in enumerate(rows):
            at[sentence, each[:1]] = True
        assert self.trainables.star is not None
        row, at = self.trainables.star(), at.to(device)
        if self.config.checkpoint:
            from torch.utils.checkpoint import checkpoint

            states = checkpoint(states_with_star, encoder, ids, at, row, use_reentrant=False)
        else:
            states = states_with_star(encoder, ids, at, row)
        return Conditioning(states.to(base.dtype), pooled.to(base.dtype))

    def _emptied(self, text: Conditioning, empty: Tensor) -> Conditioning:
        if not bool(empty.any()):
            return text
        t5, clip, *_ = self._tokenized("", "")
        nothing = self._encoded([t5], [clip], [[]])
        here = empty.to(text.embeds.device)
        assert text.pooled is not None and nothing.pooled is not None
        pooled = torch.where(here[:, None], nothing.pooled, text.pooled)
        return Conditioning(torch.where(here[:, None, None], nothing.embeds, text.embeds), pooled)


def weights_config(
    base: Flux, trainables: Trainables, config: TrainingConfig, method: str = "aligngen", **more: Any
) -> dict[str, Any]:
    """What `config.json` says beside the weights. more: further entries, e.g. size, names."""
    said = {key: value for key, value in asdict(config).items() if key not in ("backend", "checkpoint", "guidance")}
    said["switches"] = {key: said.pop(key) for key in ("star", "dem", "selective")}
    return {
        "method": method,
        "base": base.signature,
        "base_name": base.name,
        **said,
        **trainables.config(),
        "text_length": int(base.tokenizers[0].model_max_length),
        **more,
    }


def save_weights(
    folder: str | Path,
    base: Flux,
    trainables: Trainables,
    config: TrainingConfig,
    method: str = "aligngen",
    **more: Any,
) -> None:
    """Write a folder that `weights=FOLDER` of the method reads: config.json, model.safetensors."""
    with directory(folder) as building:
        save_tensors(building / WEIGHTS, trainables.tensors(), {"format": "pt"})
        write_json(building / CONFIG, weights_config(base, trainables, config, method, **more))
