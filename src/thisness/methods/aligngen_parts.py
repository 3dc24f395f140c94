"""AlignGen's parts, of which none knows a pipeline.

AlignGen (2025, arXiv 2505.21911). Equation -> function:

    S* before the full name of the concept (section 3)          `concept_span`, `spliced`: by token numbers
    S* passes through the frozen T5                             `Star`, `states_with_star`
    c <- c + SA(c); c <- c + CA(c, c_redux); c <- c + MLP(c)    `DeviationExtraction` (eq. 3-5), of which row 0 is kept
    only S* is replaced                                         `with_rows`
    softmax(q k^T / sqrt(d) + M) v (eq. 6)                      `selective_attention`: three ways, one result
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArtefactError, ConfigurationError, PromptError, nearest
from ..tokens import TokenSpans
from .flux_references import Mode, attention_mask

Backend = Literal["dense", "flex", "split"]


# --- where the concept's name stands, and S* before it ---


def concept_span(text: str, name: str) -> tuple[int, int]:
    """First and last-but-one character of a concept's name in a sentence, at its first occurrence.

    Looked for in this order: the name itself, its plural or singular, its last word alone (in each of these forms);
    whole words, whatever their case.

    Raises:
        PromptError: none of them is there; the sentence's words are named.
    """
    clean = " ".join(name.split())
    for form in (*_numbers(clean), *(_numbers(clean.split()[-1]) if " " in clean else ())):
        found = re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text, re.IGNORECASE)
        if found is not None:
            return found.span()
    words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))
    raise PromptError(
        f"{name!r} is not in {text[:200]!r}{nearest(name.lower(), words)}: its words are {', '.join(words)}; write the "
        "name of the subject into the sentence"
    )


def _numbers(word: str) -> list[str]:
    """A noun, its plural, its singular."""
    forms = [word, f"{word}s", f"{word}es"]
    if word.lower().endswith("y"):
        forms.append(word[:-1] + "ies")
    if word.lower().endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.lower().endswith("es"):
        forms.append(word[:-2])
    if word.lower().endswith("s"):
        forms.append(word[:-1])
    return [form for form in dict.fromkeys(forms) if form]


@dataclass(frozen=True)
class Spliced:
    """A tokenized sentence with S* in it.

    Args:
        ids: (L,) token numbers, padded; at the places of S* the padding's.
        stars: position of S* for each concept.
        names: positions of the tokens of each concept's name.
        end: position of the end mark.
    """

    ids: tuple[int, ...]
    stars: tuple[int, ...]
    names: tuple[tuple[int, ...], ...]
    end: int

    @property
    def concepts(self) -> list[list[int]]:
        """For each concept the rows that may read its reference: S* and the name."""
        return [[star, *name] for star, name in zip(self.stars, self.names, strict=True)]


def spliced(spans: TokenSpans, places: Sequence[tuple[int, int]], pad: int) -> Spliced:
    """Put S* before the first token of each name: by number, so that the name's own tokens stay what they are.

    Args:
        spans: the sentence without S*, of the encoder's length.
        places: for each concept its name's characters, in any order; they must not overlap.
        pad: the padding's number.

    Raises:
        PromptError: a name of which a part does not fit the encoder's length.
    """
    found = [_tokens_of(spans, *place) for place in places]
    limit, eos = len(spans.ids), spans.ids[spans.end]
    firsts = sorted(tokens[0] for tokens in found)
    ids: list[int] = []
    moved: dict[int, int] = {}
    stars: dict[int, int] = {}
    for at, number in enumerate(spans.ids[: spans.end + 1]):
        if at in firsts:
            stars[at] = len(ids)
            ids.append(pad)
        moved[at] = len(ids)
        ids.append(number)
    if len(ids) > limit:
        ids = [*ids[: limit - 1], eos]
    names = [tuple(moved[at] for at in tokens) for tokens in found]
    for place, name in zip(places, names, strict=True):
        if name[-1] >= len(ids) - 1:
            raise PromptError(
                f"{spans.text[slice(*place)]!r} with its S* does not fit the {limit} tokens of the encoder: shorten "
                "the sentence before it"
            )
    stars_of = tuple(stars[tokens[0]] for tokens in found)
    return Spliced((*ids, *[pad] * (limit - len(ids))), stars_of, tuple(names), len(ids) - 1)


def _tokens_of(spans: TokenSpans, start: int, end: int) -> list[int]:
    inside = [at for at in range(spans.end) if max(spans.offsets[at][0], start) < min(spans.offsets[at][1], end)]
    if not inside or spans.offsets[inside[-1]][1] < end:
        raise PromptError(
            f"{spans.text[start:end]!r} is cut by the encoder's {len(spans.ids)} tokens: shorten the sentence before it"
        )
    return inside


class Star(nn.Module):
    """S*: an input embedding of T5, learned as e = e_init + s delta with s the table's root mean square.

    Adam-like steps move every number by about the learning rate, and T5's embeddings are of size 1 and more.

    Args:
        start: (width,) the row of a neutral word.
        scale: s.
    """

    start: Tensor

    def __init__(self, start: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().float().clone())
        self.delta = nn.Parameter(torch.zeros_like(self.start))
        self.scale = scale

    @classmethod
    def beside(cls, table: Tensor, number: int) -> Star:
        """Starting from a word of a table of embeddings, (words, width)."""
        return cls(table[number], float(table.detach().float().square().mean().sqrt()))

    def forward(self) -> Tensor:
        """(width,) float32."""
        return self.start + self.scale * self.delta


def states_with_star(encoder: Any, ids: Tensor, stars: Tensor, row: Tensor) -> Tensor:
    """T5's states of sentences with S* in them; gradients flow to its row.

    Args:
        encoder: a `T5EncoderModel`, frozen; its table is not changed.
        ids: (B, L) token numbers.
        stars: (B, L) bool, where S* stands.
        row: (width,).

    Returns:
        (B, L, width). No position is masked, as in FLUX.
    """
    beside = next(encoder.parameters()).device  # an offloaded encoder comes to the device when it is called
    embedded = encoder.get_input_embeddings()(ids.to(beside)).to(ids.device)
    embedded = torch.where(stars.unsqueeze(-1), row.to(embedded), embedded)
    return encoder(inputs_embeds=embedded)[0]


# --- the deviation extraction module ---


class _Heads(nn.Module):
    """Attention with an output that is zero at first."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_keys = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.to_out = _zero(nn.Linear(inner, width))

    def forward(self, c: Tensor, keys: Tensor, there: Tensor | None = None) -> Tensor:
        """c: (B, n, width); keys: (B, m, width); there: (B, m) bool, False for padding -> (B, n, width)."""
        read = self.norm_keys(keys)
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.to_q(self.norm(c)), self.to_k(read), self.to_v(read))
        )
        mask = None if there is None else there[:, None, None]
        return self.to_out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class DeviationExtraction(nn.Module):
    """How a reference deviates from what its name says: S* before, S* after. At first the identity.

    Pre-norm on each branch and on the keys (T5's states are scaled by a root mean square, Redux tokens are not); the
    three outputs start at zero. No positions: Redux tokens may come in any order.

    Args:
        width: of T5's states and of Redux tokens.
        inner: of attention.
        heads: of `inner`.
        hidden: of the MLP.

    Source: eq. 3-5; sizes, norms and start are ours, the paper is silent on them.
    """

    def __init__(self, width: int = 4096, inner: int = 4096, heads: int = 32, hidden: int = 16384) -> None:
        super().__init__()
        self._sizes = {"width": width, "inner": inner, "heads": heads, "hidden": hidden}
        self.of_itself, self.of_picture = _Heads(width, inner, heads), _Heads(width, inner, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), _zero(nn.Linear(hidden, width))
        )

    @classmethod
    def lite(cls, width: int = 4096) -> DeviationExtraction:
        """A quarter of the parameters, for devices below 80 GB."""
        return cls(width, max(width // 4, 8), 8, width)

    def sizes(self) -> dict[str, int]:
        """Arguments that make another one of the same sizes."""
        return dict(self._sizes)

    def forward(self, concept: Tensor, picture: Tensor, there: Tensor | None = None, *, every: bool = False) -> Tensor:
        """What to put in the place of S*.

        Args:
            concept: (B, 1 + l, width) states of S* and of the name's tokens, padded.
            picture: (B, tokens, width) of Redux.
            there: (B, 1 + l) bool, False for padding; None: all are there.
            every: all rows instead of the first alone (the paper's ablation); the first comes out the same.

        Returns:
            (B, width), or (B, 1 + l, width) with `every`.
        """
        c = concept if every else concept[:, :1]
        c = c + self.of_itself(c, concept, there)
        c = c + self.of_picture(c, picture)
        c = c + self.mlp(c)
        return c if every else c[:, 0]


def read_parts(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[DeviationExtraction | None, Star | None]:
    """The module and S* of a folder of weights; None for what was not trained.

    Args:
        tensors: `dem.` and `star.` among them.
        config: "dem": sizes of the module.

    Raises:
        ArtefactError: tensors that do not fit the sizes.
    """
    dem = star = None
    try:
        if config.get("dem"):
            dem = DeviationExtraction(**config["dem"])
            dem.load_state_dict({k.removeprefix("dem."): e for k, e in tensors.items() if k.startswith("dem.")})
        if config.get("star"):
            star = Star(tensors["star.start"], float(tensors["star.scale"]))
            star.load_state_dict({"start": tensors["star.start"], "delta": tensors["star.delta"]})
    except (TypeError, RuntimeError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise ArtefactError(f"config.json and model.safetensors of AlignGen do not fit each other: {said}") from None
    return dem, star


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def picked_rows(states: Tensor, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Some rows of each sentence: states (B, L, width) -> (B, n, width) padded, and (B, n) bool: what is no padding."""
    longest = max(map(len, rows))
    index = torch.tensor([[*each, *[0] * (longest - len(each))] for each in rows], device=states.device)
    there = (
        torch.arange(longest, device=states.device) < torch.tensor(list(map(len, rows)), device=states.device)[:, None]
    )
    return states.gather(1, index.unsqueeze(-1).expand(-1, -1, states.shape[-1])), there


def deviated(
    module: DeviationExtraction, states: Tensor, rows: Sequence[Sequence[int]], picture: Tensor, *, every: bool = False
) -> Tensor:
    """Text states in which the first of a concept's rows is what the module makes of it; a new tensor.

    Args:
        states: (B, L, width).
        rows: for each sentence S* and the name; one without any stays as it is.
        picture: (B, tokens, width) of Redux.
        every: replace all of the concept's rows (the ablation of the paper's figure 7).
    """
    having = [number for number, each in enumerate(rows) if each]
    if not having:
        return states
    some = len(having) < len(rows)
    chosen = [rows[number] for number in having]
    concept, there = picked_rows(states[having] if some else states, chosen)
    made = module(concept.float(), (picture[having] if some else picture).float(), there, every=every)
    sentence = [number for number, each in zip(having, chosen, strict=True) for _ in (each if every else each[:1])]
    at = [row for each in chosen for row in (each if every else each[:1])]
    values = made[there] if every else made
    index = tuple(torch.tensor(each, device=states.device) for each in (sentence, at))
    return states.index_put(index, values.to(states.dtype))


def with_rows(states: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """States (B, L, width) with one row of each sentence replaced by (B, width), at (B,); a new tensor."""
    here = torch.arange(states.shape[1], device=states.device) == at.to(states.device).unsqueeze(-1)
    return torch.where(here.unsqueeze(-1), rows.unsqueeze(1).to(states.dtype), states)


# --- selective attention ---


class Plan:
    """Who reads whom among the rows [text; noisy; references], for a batch of sentences.

    Args:
        text, noisy: rows of each.
        references: rows of each reference.
        concepts: for each sentence, for each reference, the text's rows that may read it: S* and the name.
        mode: "joint" or "independent".
        bind: a concept reads its own reference alone; False: all of them.
    """

    def __init__(
        self, text: int, noisy: int, references: Sequence[int], concepts: Sequence[Sequence[Sequence[int]]],
        mode: Mode = "joint", *, bind: bool = True,
    ) -> None:  # fmt: skip
        wrong = [each for each in concepts if len(each) != len(references)]
        if wrong:
            raise ConfigurationError(f"{len(references)} references, but rows for {len(wrong[0])} in a sentence")
        self.text, self.noisy, self.references, self.mode = text, noisy, list(references), mode
        if not bind:
            concepts = [[sorted({row for rows in each for row in rows})] * len(references) for each in concepts]
        self.concepts, self.bind = [[list(rows) for rows in each] for each in concepts], bind
        self._kept: dict[Any, Any] = {}

    @property
    def main(self) -> int:
        return self.text + self.noisy

    @property
    def total(self) -> int:
        return self.main + sum(self.references)

    @cached_property
    def dense(self) -> Tensor:
        """(B, 1, L, L) bool, True where a query reads a key. Always four axes: two are read as padding of keys."""
        masks = [attention_mask(self.text, self.noisy, self.references, self.mode, each) for each in self.concepts]
        return torch.stack([each for each in masks if each is not None])[:, None]

    def bias(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """The same as what is added to the scores: 0, and -inf where a query does not read a key."""
        key = (str(device), dtype)
        if key not in self._kept:
            made = torch.zeros(self.dense.shape, dtype=dtype).masked_fill_(~self.dense, float("-inf"))
            self._kept[key] = made.to(device)
        return self._kept[key]

    def slices(self) -> list[slice]:
        """Rows of each reference."""
        firsts = [self.main + sum(self.references[:number]) for number in range(len(self.references))]
        return [slice(first, first + count) for first, count in zip(firsts, self.references, strict=True)]

    def block_mask(self, device: torch.device | str, block: int = 128, queries: int | None = None) -> Any:
        """The same for FlexAttention; queries: how many rows ask, `total` or the first `main`."""
        from torch.nn.attention.flex_attention import create_block_mask

        queries = self.total if queries is None else queries
        key = (str(device), block, queries)
        if key in self._kept:
            return self._kept[key]
        count = len(self.references)
        reads = torch.zeros(len(self.concepts), self.total, max(count, 1), dtype=torch.bool)  # which references
        of = torch.full((self.total,), -1)
        reads[:, self.text : self.main] = True
        for number, rows in enumerate(self.slices()):
            of[rows] = number
            reads[:, rows, number] = True
            for sentence, concepts in enumerate(self.concepts):
                reads[sentence, concepts[number], number] = True
        reads, of = reads.to(device), of.to(device)
        joint = torch.tensor(self.mode == "joint", device=device)

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return torch.where(of[k] >= 0, reads[b, q, of[k].clamp(min=0)], joint | (of[q] < 0))

        self._kept[key] = create_block_mask(
            allowed, len(self.concepts), None, queries, self.total, device=str(device), BLOCK_SIZE=block
        )
        return self._kept[key]


def selective_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, backend: Backend = "split") -> Tensor:
    """Attention under a plan: (B, H, L, D) each -> (B, H, L, D). All three ways give the same up to rounding.

    Queries are of all rows, or of text and noisy rows alone where the references' were answered elsewhere.

    dense: one call with a mask of L^2. flex: FlexAttention, compiled on a GPU. split: no mask at all, by a call
    for each group of rows that read the same keys; exact on back-ends that leave masks out.

    Source: eq. 6.
    """
    if backend == "dense":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=plan.dense[:, :, : q.shape[2]].to(q.device))
    if backend == "flex":
        if q.device.type == "cpu" and any(each.requires_grad for each in (q, k, v)):
            raise ConfigurationError("FlexAttention has no gradients on the CPU: use split, or dense")
        return _flex(q.device.type != "cpu")(q, k, v, block_mask=plan.block_mask(q.device, queries=q.shape[2]))
    if backend != "split":
        raise ConfigurationError(f"no back-end {backend!r}: dense, flex or split")
    return _split(q, k, v, plan)


@cache
def _flex(compiled: bool) -> Any:
    """FlexAttention; without compiling it writes out all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def _split(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
    main, text = plan.main, plan.text
    own, rows = slice(0, main), plan.slices()
    words = _over(q[:, :, :text], k, v, [own])
    noisy = _over(q[:, :, text:main], k, v, [slice(0, plan.total)])
    groups = [(each, [own, each]) for each in rows]
    if not plan.bind and rows:
        groups = [(rows[0], [slice(0, plan.total)])]
    for number, (_, keys) in enumerate(groups):
        words = _written(words, q, k, v, [each[number] for each in plan.concepts], keys)
    asked = rows if q.shape[2] > main else []
    ends = [_over(q[:, :, each], k, v, [own, each] if plan.mode == "joint" else [each]) for each in asked]
    return torch.cat([words, noisy, *ends], 2)


def _over(q: Tensor, k: Tensor, v: Tensor, keys: Sequence[slice]) -> Tensor:
    if len(keys) == 1:
        return F.scaled_dot_product_attention(q, k[:, :, keys[0]], v[:, :, keys[0]])
    k, v = (torch.cat([each[:, :, part] for part in keys], 2) for each in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def _written(
    words: Tensor, q: Tensor, k: Tensor, v: Tensor, concepts: Sequence[Sequence[int]], keys: Sequence[slice]
) -> Tensor:
    """The text's outputs with those of a concept's rows computed anew over other keys. Sentences may have more or fewer
    such rows: what stands in a spare slot is computed and dropped, never written."""
    longest = max(map(len, concepts), default=0)
    if not longest:
        return words
    index = torch.tensor([[*rows, *[0] * (longest - len(rows))] for rows in concepts], device=q.device)
    picked = q.gather(2, index[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    found = _over(picked, k, v, keys)  # (B, H, longest, D)
    sentence = torch.tensor([b for b, rows in enumerate(concepts) for _ in rows], device=q.device)
    slot = torch.tensor([at for rows in concepts for at in range(len(rows))], device=q.device)
    row = torch.tensor([row for rows in concepts for row in rows], device=q.device)
    by_row = words.transpose(1, 2).index_put((sentence, row), found.transpose(1, 2)[sentence, slot])
    return by_row.transpose(1, 2)
