"""What a base's text encoders make of sentences and words, for the measures of semantic collapse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..adapters.words import LearnedRows, text_parts, vocabulary_rows
from ..bases import Base
from ..conditioning import Conditioning, encode
from ..errors import ArtefactError, ThisnessError
from ..files import load_tensors, read_json, save_tensors, write_json
from ..prompt import Prompt, SlotWord
from . import collapse_distances as d
from .collapse import Sets
from .collapse_prompts import context_prompts, simple_prompts

Pool = Literal["eos", "last", "mean", "flat"]
BATCH = 32
RECORDED = 32  # sentences of each kind while learning: few, so that it costs little
RECORDS = "collapse"  # the folder beside the log
FORMAT, VERSION = "thisness-collapse-records", 1


def pooled(encoded: Conditioning, pool: Pool = "eos") -> Tensor:
    """One vector for each sentence, (n, width) float64 on the CPU.

    "eos": at the first end mark. "last": the last position (of the official code: padding, as a rule). "mean": over the
    words between the marks. "flat": all positions beside each other, (n, length * width).
    """
    embeds = encoded.embeds.double().cpu()
    if pool == "last":
        return embeds[:, -1]
    if pool == "flat":
        return embeds.flatten(1)
    ends = [spans.end for spans in encoded.spans]
    if pool == "eos":
        return embeds[range(len(ends)), ends]
    return torch.stack([row[1 : max(end, 2)].mean(0) for row, end in zip(embeds, ends, strict=True)])


@torch.no_grad()
def features(
    base: Base, prompts: Sequence[str], word: SlotWord, pool: Pool = "eos", done: Callable[[int], None] = lambda n: None
) -> Tensor:
    """Of sentences with a word in the place of {subject}: (n, width) float64. done: called with how many more are."""
    parts = []
    for start in range(0, len(prompts), BATCH):
        some = [Prompt(text).fill({"subject": word}) for text in prompts[start : start + BATCH]]
        parts.append(pooled(encode(base, some), pool))
        done(len(some))
    return torch.cat(parts)


def word_rows(base: Base, tokens: Sequence[str]) -> dict[str, Tensor]:
    """Rows of learned words that are attached, by text encoder: (tokens, width); {} for no tokens."""
    return vocabulary_rows(base, " ".join(tokens)) if tokens else {}


def vocabulary_table(base: Base, encoder: str) -> Tensor:
    """(words, width) of an encoder's own vocabulary, whatever is attached."""
    table: Any = text_parts(base)[encoder][1].get_input_embeddings()  # type: ignore[operator]
    while isinstance(table, LearnedRows):
        table = table.original
    weight: Tensor = table.weight.detach().float().cpu()
    return weight


def own_tokens(word: SlotWord, tokens: Sequence[str]) -> list[str]:
    """Those of a concept's tokens that its word is made of: not those that keep a pose."""
    return [piece for piece in word.text.split() if piece in tokens]


class Tracker:
    """Measures collapse while something learns: what it says goes into the log, what it saw into a folder.

    It changes nothing of the learning: no random number is drawn, no gradient flows.

    Args:
        base: with the word attached.
        word, tokens, noun: of what is learned.
        every: steps.
        folder: of the run; the records are in `collapse` in it.
        resume: whether records of an earlier call stay.
    """

    def __init__(
        self, base: Base, word: SlotWord, tokens: Sequence[str], noun: str, every: int, folder: Path, resume: bool
    ) -> None:
        self.base, self.word, self.every, self.folder = base, word, every, folder / RECORDS
        self.tokens = own_tokens(word, tokens)
        self.last = -1
        anchor = SlotWord(noun, noun)
        self.context = context_prompts(base, [word, anchor], RECORDED)
        self.simple = simple_prompts(base, [word, anchor], RECORDED)
        with _apart(base):
            self.noun = Sets(features(base, self.context, anchor), features(base, self.simple, anchor))
        said = {"format": FORMAT, "version": VERSION, "word": word.text, "noun": noun, "pool": "eos"}
        said |= {"context": self.context, "simple": self.simple}
        description = self.folder / "prompts.json"
        if self.folder.is_dir() and not (resume and description.is_file() and read_json(description) == said):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(description, said)

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Numbers for the log where it is time: after `step` updates; else {}."""
        return self.record(step) if step % self.every == 0 and step != self.last else {}

    def record(self, step: int) -> dict[str, Tensor]:
        """Measure, and write it down."""
        self.last = step
        with _apart(self.base):
            now = Sets(features(self.base, self.context, self.word), features(self.base, self.simple, self.word))
            rows = word_rows(self.base, self.tokens)
        tensors = {"context": now.context.float(), "simple": now.simple.float()}
        tensors |= {f"rows/{name}": each.cpu() for name, each in rows.items()}
        save_tensors(self.folder / f"step-{step:06d}.safetensors", tensors)
        unit = d.l2_within(self.noun.context)
        numbers = {
            "collapse/paired": d.paired(self.noun.context, now.context) / unit,
            "collapse/within": d.l2_within(now.context) / unit,
            "collapse/to simple": d.l2(now.context, now.simple) / unit,
        }
        numbers |= {f"norm/{name}": each.norm(dim=1).mean() for name, each in rows.items()}
        device = self.base.device
        return {name: value.float().to(device) for name, value in numbers.items()}


@contextmanager
def _apart(base: Base) -> Iterator[None]:
    """Without gradients, random numbers, reduced precision or dropout; all of it as before afterwards."""
    device = base.device
    modules = [part for _, encoder in text_parts(base).values() for part in encoder.modules()]
    modes = [part.training for part in modules]
    try:
        for part in modules:
            part.training = False
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for part, mode in zip(modules, modes, strict=True):
            part.training = mode


@dataclass(frozen=True, eq=False)
class Records:
    """What a `Tracker` wrote.

    Attributes:
        context, simple: sentences with {subject}.
        times: features by step.
        rows: by step and text encoder, (tokens, width).
    """

    context: list[str]
    simple: list[str]
    times: dict[int, Sets]
    rows: dict[int, dict[str, Tensor]]


def read_records(folder: Path, word: str) -> Records | None:
    """What was recorded while a concept learned; None where nothing was.

    Args:
        folder: of the concept (or of a run that goes on).
        word: of the concept.

    Raises:
        ArtefactError: other contents than a `Tracker` writes, or of another word.
    """
    description = folder / RECORDS / "prompts.json"
    if not description.is_file():
        return None
    try:
        said = read_json(description)
        if said["format"] != FORMAT or said["version"] != VERSION:
            raise KeyError("format")
        context, simple = ([Prompt(text).text for text in said[kind]] for kind in ("context", "simple"))
        found = said["word"]
    except (KeyError, TypeError, ThisnessError) as error:
        raise ArtefactError(f"{description} is not what `learn --track-collapse` writes ({error})") from error
    if found != word:
        raise ArtefactError(f"{description} tells of the word {found!r}, the concept's is {word!r}")
    times, rows = {}, {}
    for path in sorted((folder / RECORDS).glob("step-*.safetensors")):
        number = path.stem.removeprefix("step-")
        tensors = load_tensors(path)
        sizes = {"context": len(context), "simple": len(simple)}
        if not number.isdecimal() or any(name not in tensors or len(tensors[name]) != n for name, n in sizes.items()):
            raise ArtefactError(f"{path} does not hold what {description.name} describes")
        times[int(number)] = Sets(tensors["context"].double(), tensors["simple"].double())
        rows[int(number)] = {
            name.removeprefix("rows/"): each for name, each in tensors.items() if name.startswith("rows/")
        }
    return Records(context, simple, times, rows) if times else None
