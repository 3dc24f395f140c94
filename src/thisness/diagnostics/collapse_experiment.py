"""Semantic collapse of a concept on its base: the sentences are encoded, the numbers taken, the verdict found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import EMBEDDINGS, LORA, REPLACED, attached_words
from ..adapters.words import text_parts, vocabulary_rows
from ..bases import Base
from ..concept import Concept
from ..conditioning import encode
from ..errors import ConfigurationError, PromptError
from ..files import write_json, write_text
from ..methods.tea import aligned, anchor_row
from ..prompt import FilledPrompt, Prompt, SlotWord
from ..tokens import ARTICLES
from . import collapse_distances as d
from .collapse import (
    ORDER,
    Rows,
    Ruler,
    Sets,
    Value,
    Verdict,
    Vocabulary,
    beside_class,
    concluded,
    measure,
    over_training,
    prompt_drift,
    rows_beside,
    sentence,
    vocabulary,
    warnings_of,
)  # fmt: skip
from .collapse_features import Pool, features, own_tokens, read_records, vocabulary_table, word_rows
from .collapse_prompts import COUNT, FEWEST, context_prompts, simple_prompts

DRIFTING = 16  # sentences that are compared position by position
DRAWN = 200  # resamples for the intervals of what was recorded
NEAR = 3  # words of the vocabulary shown beside the class word


@dataclass(frozen=True, eq=False)
class CollapseDiagnosis:
    """What was measured.

    Attributes:
        concept, base: names, and what tells them apart.
        anchor: the class word.
        touched: whether anything that the text encoder reads was learned.
        distances: of the finished word, by pair and distance; see `collapse.ORDER`.
        verdicts: the first is the one that counts; over the training where that was recorded.
        known: the vocabulary, by text encoder.
        rows: of the finished word, by text encoder.
        times: what was recorded while it learned: by step the distances.
        row_times: and the rows.
        concept_gap: sentences with the word on the base as learned, beside those with the class word on the untouched.
        encoder_drift: the same sentences on the base as learned and on the untouched one; None: its encoder is.
        notes: what a reader must know.
        settings: how it was measured.
        prompts: by kind; "recorded": those while it learned.
    """

    concept: dict[str, Any]
    base: dict[str, Any]
    anchor: str
    touched: bool
    distances: dict[str, dict[str, Value]]
    verdicts: tuple[Verdict, ...]
    known: dict[str, Vocabulary]
    rows: dict[str, Rows]
    times: dict[int, dict[str, dict[str, Value]]]
    row_times: dict[int, dict[str, Rows]]
    concept_gap: dict[str, dict[str, float]]
    encoder_drift: dict[str, dict[str, float]] | None
    notes: tuple[str, ...]
    settings: dict[str, Any]
    prompts: dict[str, list[str]] = field(repr=False)

    @property
    def sentences(self) -> list[str]:
        """The verdicts in words, one line each."""
        name = self.concept["name"]
        if not self.touched:
            return [
                f"{name}: not collapsed: nothing that the text encoder reads was learned (in sentences it is "
                f"{self.concept['word']!r}, words of the base's own); all that was learned is in the denoiser, so that "
                "there is no word to adjust either"
            ]
        return [sentence(name, self.anchor, verdict) for verdict in self.verdicts]

    @property
    def conclusion(self) -> str:
        """Whether, when and how far the word has collapsed, and what to do about it, in one line."""
        return concluded(self.concept["name"], self.anchor, self.verdicts, self.touched)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""

        def numbers(found: dict[str, dict[str, Value]]) -> dict[str, Any]:
            return {pair: {name: each.to_dict() for name, each in group.items()} for pair, group in found.items()}

        return {
            "format": "thisness-collapse",
            "version": 1,
            "verdict": self.verdicts[0].word if self.touched else "not collapsed",
            "conclusion": self.conclusion,
            "sentences": self.sentences,
            "notes": list(self.notes),
            "concept": self.concept,
            "base": self.base,
            "class_word": self.anchor,
            "touched": self.touched,
            "verdicts": [each.to_dict() for each in self.verdicts],
            "order": {pair: list(order) for pair, order in ORDER.items()},
            "distances": numbers(self.distances),
            "rows": {name: vars(each) for name, each in self.rows.items()},
            "vocabulary": {
                name: {
                    "words": len(each.norms),
                    "norm_1_50_99_percent": each.norms.quantile(each.norms.new_tensor([0.01, 0.5, 0.99])).tolist(),
                    "class_word_norm": each.anchor_norm,
                    "norms": each.marks,
                }
                for name, each in self.known.items()
            },
            "training": [
                {
                    "step": step,
                    "distances": numbers(found),
                    "rows": {name: vars(each) for name, each in self.row_times[step].items()},
                }
                for step, found in self.times.items()
            ],
            "concept_gap": self.concept_gap,
            "encoder_drift": self.encoder_drift,
            "settings": self.settings,
            "prompts": self.prompts,
        }

    def save(self, folder: Path) -> list[Path]:
        """Write `collapse.html`, `collapse.png`, `collapse.json`; returns their paths."""
        from ..images import save_png
        from .collapse_sheet import draw, page

        drawing = draw(self)
        page_path, picture, numbers = (folder / f"collapse.{end}" for end in ("html", "png", "json"))
        folder.mkdir(parents=True, exist_ok=True)
        write_text(page_path, page(self, drawing))
        save_png(drawing.image(), picture)
        write_json(numbers, self.to_dict())
        return [page_path, picture, numbers]


def diagnose_collapse(
    base: Base,
    concept: Concept,
    *,
    anchor: str = "",
    folder: Path | None = None,
    context: Sequence[str] = (),
    simple: Sequence[str] = (),
    count: int = COUNT,
    seed: int = 0,
    pool: Pool = "eos",
    temperature: float | None = None,
    paper: bool = False,
    done: Callable[[int], None] = lambda number: None,
) -> CollapseDiagnosis:
    """Measure how far a concept's word has lost the meaning of its class word.

    Args:
        base: with nothing attached.
        concept: of any method.
        anchor: the class word, a word or a phrase; the concept's noun by default.
        folder: the concept's; what `learn --track-collapse` recorded is read from it.
        context, simple: sentences with {subject}; built-in ones by default.
        count: of each kind of built-in sentences.
        seed: of their words.
        pool: which vector stands for a sentence: "eos", "last" or "mean".
        temperature: of KL; 0.07, or 1 with `paper`.
        paper: measure as the official code: last position, KL at 1 with a floor of 1e-8, each set's own covariance.
        done: called with the number of further sentences that were encoded.

    Raises:
        ConfigurationError: no class word, or numbers that do not fit.
        PromptError: a class word that the base has no token for, sentences that are too long.
        ArtefactError: a concept of another base, or records that do not belong to it.
    """
    anchor = " ".join((anchor or concept.noun).split())
    if not anchor:
        raise ConfigurationError(f"the concept {concept.name!r} has no class noun: name one (--anchor dog)")
    if pool not in ("eos", "last", "mean"):
        raise ConfigurationError(f"pool {pool!r}: expected eos, last or mean")
    if count < FEWEST or (temperature is not None and temperature <= 0):
        raise ConfigurationError(f"count {count} must be at least {FEWEST}, and the temperature above 0")
    pool = "last" if paper else pool
    temperature = temperature or (1.0 if paper else d.TEMPERATURE)
    noun, word = SlotWord(anchor, anchor), concept.word
    extra = len(own_tokens(word, concept.tokens)) - len(anchor.split())
    anchors = vocabulary_rows(base, anchor)
    notes = _notes(base, anchor, anchors)
    known = {name: _vocabulary(base, name, rows, anchor) for name, rows in anchors.items()}
    tokens = own_tokens(word, concept.tokens)
    tuned = _tunes_text(concept)
    if extra > 0 and anchor not in word.text.split():
        notes.append(
            f'the word has {len(tokens)} rows, "{anchor}" has {len(anchor.split())}: some of the difference beside it '
            "is of that alone"
        )
    records = read_records(folder, word.text) if folder is not None else None

    with concept.attach(base):
        both = [word, noun]
        context = list(context) or context_prompts(base, both, count, seed)
        simple = list(simple) or simple_prompts(base, both, count, seed)
        ours = Sets(features(base, context, word, pool, done), features(base, simple, word, pool, done))
        rows = word_rows(base, tokens)
        looked_at = context[:DRIFTING]
        filled = [Prompt(text).fill({"subject": word}) for text in looked_at]
        learned = _encoded(base, filled)
    theirs = Sets(features(base, context, noun, pool, done), features(base, simple, noun, pool, done))
    plain = [Prompt(text).fill({"subject": noun}) for text in looked_at]
    spans = [each.tokenize(base.tokenizer) for each in plain]
    gap = prompt_drift(
        learned[0], _encoded(base, plain)[0], learned[1],
        [_partners(a, b, x, y) for a, b, x, y in zip(filled, plain, learned[1], spans, strict=True)],
    )  # fmt: skip
    drift = _encoder_drift(base, concept, filled, learned) if tuned else None

    ruler = Ruler(None if paper else d.reference(theirs.context), temperature, 1e-8 if paper else 0.0)
    times: dict[int, Sets] = {}
    recorded: dict[str, list[str]] = {}
    then = theirs
    if records is not None:
        kept = [_without(records.context, anchor), _without(records.simple, anchor)]
        times = {step: Sets(each.context[kept[0]], each.simple[kept[1]]) for step, each in records.times.items()}
        recorded = {
            "recorded": [records.context[n] for n in kept[0]],
            "recorded_simple": [records.simple[n] for n in kept[1]],
        }
        then = Sets(*(features(base, texts, noun, "eos", done) for texts in recorded.values()))
        if pool != "eos":
            notes.append("what was recorded while it learned is of the end mark (eos), whatever the finished word's is")
    over = over_training(times, then)
    if times and over is None:
        notes.append(f"only {len(times)} times were recorded: too few for a verdict about the training")
    then_ruler = Ruler(None if paper else d.reference(then.context), ruler.temperature, ruler.floor)
    return CollapseDiagnosis(
        concept={
            "name": concept.name, "method": concept.method, "word": word.text, "tokens": tokens, "hash": concept.hash,
        },
        base={"name": base.name, "family": base.family, "signature": base.signature},
        anchor=anchor,
        touched=bool(tokens) or tuned,
        distances=measure(ours, theirs, ruler),
        verdicts=tuple(each for each in (over, beside_class(ours, theirs)) if each is not None),
        known=known,
        rows={name: rows_beside(each.cpu(), known[name]) for name, each in rows.items()},
        times={step: measure(each, then, then_ruler, resamples=DRAWN) for step, each in times.items()},
        row_times={
            step: {name: rows_beside(own, known[name]) for name, own in each.items() if name in known}
            for step, each in (records.rows.items() if records is not None else ())
        },
        concept_gap=gap,
        encoder_drift=drift,
        notes=tuple([*notes, *_row_warnings(known, rows, records.rows if records is not None else {})]),
        settings={
            "pool": pool, "temperature": temperature, "paper": paper, "seed": seed, "shrinkage": d.SHRINKAGE,
            "covariance": "each set's own, pseudo-inverted" if paper else "of P_c under the untouched base, shrunk",
            "context": len(context), "simple": len(simple),
        },
        prompts={"context": context, "simple": simple, **recorded},
    )  # fmt: skip


def _notes(base: Base, anchor: str, rows: dict[str, Tensor]) -> list[str]:
    notes = []
    if all(piece.lower() in ARTICLES for piece in anchor.split()):
        notes.append(f"the class word {anchor!r} is only an article: it names no class (use --anchor)")
    for name, each in rows.items():
        if len(each) > 1:
            notes.append(
                f"{anchor!r} is {len(each)} tokens to the {name} of {base.name}: their mean direction and mean norm "
                "stand for it"
            )
    return notes


def _row_warnings(
    known: dict[str, Vocabulary], rows: dict[str, Tensor], times: dict[int, dict[str, Tensor]]
) -> list[str]:
    found = []
    for name, own in rows.items():
        series: dict[int | None, Rows] = {
            step: rows_beside(each[name], known[name]) for step, each in sorted(times.items()) if name in each
        }
        series[None] = rows_beside(own.cpu(), known[name])
        prefix = f"{name}: " if len(rows) > 1 else ""
        found += [f"{prefix}{each}" for each in warnings_of(series)]
    return found


def _vocabulary(base: Base, encoder: str, rows: Tensor, anchor: str) -> Vocabulary:
    """With the norms of the marks and of the words nearest to the class word."""
    tokenizer = base.parts[text_parts(base)[encoder][0]]
    table = vocabulary_table(base, encoder)
    direction = anchor_row(rows).cpu().float()
    special = sorted({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()})
    near = torch.cosine_similarity(table, direction[None]).nan_to_num(-1)
    near[[number for number in special if number < len(near)]] = -1
    own = set(tokenizer(anchor, add_special_tokens=False)["input_ids"])
    marks = {"start of text": tokenizer.bos_token_id, "end of text": tokenizer.eos_token_id}
    for number in near.argsort(descending=True).tolist():
        if len(marks) == 2 + NEAR:
            break
        said = tokenizer.convert_ids_to_tokens(number)
        if number not in own and said.endswith("</w>") and said.removesuffix("</w>").isalpha():
            marks[said.removesuffix("</w>")] = number
    return vocabulary(table, direction, special, {name: number for name, number in marks.items() if number is not None})


def _tunes_text(concept: Concept) -> bool:
    """Whether weights of a text encoder were learned."""
    files = (concept.tensors.get(LORA, {}), concept.tensors.get(REPLACED, {}))
    return any(key.startswith("text_encoder") for tensors in files for key in tensors)


@torch.no_grad()
def _encoded(base: Base, prompts: Sequence[FilledPrompt]) -> tuple[Tensor, tuple[Any, ...]]:
    encoded = encode(base, prompts)
    return encoded.embeds.float().cpu(), encoded.spans


def _encoder_drift(
    base: Base, concept: Concept, prompts: Sequence[FilledPrompt], learned: tuple[Tensor, tuple[Any, ...]]
) -> dict[str, dict[str, float]]:
    """The same sentences, learned words included, on an encoder without what was learned of its weights."""
    rows = concept.tensors.get(EMBEDDINGS)
    with attached_words(base, concept.tokens, rows) if rows else nullcontext():
        plain = _encoded(base, prompts)[0]
    return prompt_drift(learned[0], plain, learned[1], [range(plain.shape[1])] * len(plain))


def _partners(ours: FilledPrompt, theirs: FilledPrompt, own: Any, other: Any) -> Sequence[int]:
    places = [
        ((a.char_start, a.char_end), (b.char_start, b.char_end)) for a, b in zip(ours.slots, theirs.slots, strict=True)
    ]
    return aligned(own, other, places)


def _without(prompts: Sequence[str], anchor: str) -> list[int]:
    """Which sentences do not hold the class word beside {subject}."""
    kept = [n for n, text in enumerate(prompts) if not set(anchor.lower().split()) & set(text.lower().split())]
    if len(kept) < 2:
        raise PromptError(f"the recorded sentences all hold {anchor!r}: take another class word")
    return kept
