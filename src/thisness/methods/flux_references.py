"""Reference pictures as further tokens of a FLUX transformer: what OminiControl and AlignGen share.

    positions of a reference: (0, row + dy, column + dx)     `reference_ids`
    y = W x + (alpha / r) B A x for rows of references alone `RowLora`
    modulation of those rows: time 0, guidance 1             `reference_modulation`
    rows [text; picture; references], who attends to whom    `attention_mask`
    "independent": a reference reads itself alone, so that its keys and values are the same in every step
                                                             `keys_and_values`, `References.qkv`
    "joint": references read text and picture, too           `dual_body`, `single_body`

Sources: Tan et al., OminiControl (2024, arXiv 2411.15098) and OminiControl2 (2025, arXiv 2503.08280), and their code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.lora import pairs_of
from ..attention import Context, Intervention, Site, Where, sites_of
from ..attention.flux import given_back, projected
from ..bases.flux import position_ids
from ..errors import ArtefactError, ConfigurationError, ThisnessError, raise_all
from ..files import listed

Mode = Literal["joint", "independent"]
KeysValues = dict[str, tuple[Tensor, Tensor]]  # by site: (B, R, H*D) each

_DUAL = ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")
_SINGLE = ("norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {
    "full": (_DUAL, _SINGLE, True),
    "qk": (("norm1.linear", "attn.to_q", "attn.to_k"), ("norm.linear", "attn.to_q", "attn.to_k"), False),
}
"""By preset: the layers of dual blocks, of single blocks, and whether `x_embedder`, that have low-rank weights."""
_ALLOWED = re.compile(
    r"x_embedder|transformer_blocks\.\d+\.(norm1\.linear|attn\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)"
)


def reference_ids(rows: int, columns: int, shift: tuple[float, float], compact: int = 1) -> Tensor:
    """Positions of a reference's tokens, (rows * columns, 3) float32.

    Args:
        rows, columns: of its tokens.
        shift: rows and columns by which it stands off the picture.
        compact: the reference is this many times smaller than what it stands for: its tokens stand in the middle of
            those that they replace, at i * compact + (compact - 1) / 2.

    Source: OminiControl2, section 3.
    """
    ids = position_ids(rows, columns)
    ids[:, 1:] = ids[:, 1:] * compact + (compact - 1) / 2
    ids[:, 1:] += torch.tensor(shift, dtype=torch.float32)
    return ids


def overlapping(ids: Tensor, others: Tensor) -> bool:
    """Whether two sets of positions, (n, 3) and (m, 3), have one in common."""
    return not {tuple(each) for each in ids.tolist()}.isdisjoint(tuple(each) for each in others.tolist())


def attention_mask(
    text: int, noisy: int, references: Sequence[int], mode: Mode, concepts: Sequence[Sequence[int]] | None = None
) -> Tensor | None:
    """Who attends to whom among the rows [text; noisy; references]: (L, L) bool, True where a query reads a key.

    Args:
        text, noisy: how many rows.
        references: how many rows each has. They never read one another.
        mode: "joint": references read text and picture, too; "independent": themselves alone.
        concepts: for each reference the text's rows that may read it (AlignGen's selective mask); all rows of the text
            where None (OminiControl).

    Returns:
        None where every row reads every other.
    """
    if concepts is None and mode == "joint" and len(references) < 2:
        return None
    main = text + noisy
    mask = torch.ones(main + sum(references), main + sum(references), dtype=torch.bool)
    first = main
    for number, count in enumerate(references):
        own = slice(first, first + count)
        mask[main:, own] = False
        mask[own, own] = True
        if concepts is not None:
            mask[:text, own] = False
            mask[list(concepts[number]), own] = True
        if mode == "independent":
            mask[own, :main] = False
        first += count
    return mask


def reference_modulation(model: Any, pooled: Tensor) -> Tensor:
    """What modulates rows of references: time 0 (they are clean), guidance 1. (B, pooled width) -> (B, inner width)."""
    dtype = model.x_embedder.weight.dtype if hasattr(model.x_embedder, "weight") else pooled.dtype
    time = torch.zeros(len(pooled), device=pooled.device, dtype=dtype)
    if not model.config.guidance_embeds:
        return model.time_text_embed(time, pooled)
    return model.time_text_embed(time, torch.ones_like(time) * 1000, pooled)


class RowLora(nn.Module):
    """Low-rank weights that act on some rows only: those of references.

    Args:
        tensors: "MODULE.lora_A.weight" (rank, in), "MODULE.lora_B.weight" (out, rank) by module of the transformer,
            applied with scale 1. Parameters stay parameters, and receive gradients.

    Raises:
        ArtefactError: modules that references have no rows in, or not a pair for each.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.pairs = pairs_of(tensors) if tensors else {}
        strange = [module for module in self.pairs if not _ALLOWED.fullmatch(module)]
        if strange:
            raise ArtefactError(
                f"low-rank weights on {listed(strange)}, which rows of references never pass: they are for another "
                "model or method"
            )
        self.first: int | None = None

    @contextmanager
    def rows(self, first: int | None) -> Iterator[None]:
        """For the length of a `with`: act on rows from `first` on; None: none; 0: all, and inputs without rows."""
        before, self.first = self.first, first
        try:
            yield
        finally:
            self.first = before

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Let them act on a transformer for the length of a `with`. Without `rows` they do nothing.

        Raises:
            ArtefactError: modules that the model does not have, or other shapes; all of it at once.
            ConfigurationError: other low-rank weights on the same layers are merged, or of the DoRA type.
        """
        modules = dict(model.named_modules())
        problems = []
        for name, (a, b) in self.pairs.items():
            module = modules.get(name)
            base = getattr(module, "base_layer", module)
            if not isinstance(base, nn.Linear):
                problems.append(f"no layer {name}")
            elif (a.shape[1], b.shape[0]) != (base.in_features, base.out_features) or a.shape[0] != b.shape[1]:
                expected = f"(rank, {base.in_features}) and ({base.out_features}, rank)"
                problems.append(f"{name} is {tuple(a.shape)} and {tuple(b.shape)}: expected {expected}")
        if problems:
            raise ArtefactError(f"these low-rank weights are for another model: {listed(problems)}")
        raise_all([p for name in self.pairs if (p := _unsplittable(name, modules[name]))], ConfigurationError)
        with ExitStack() as stack:
            for name, (a, b) in self.pairs.items():
                stack.callback(modules[name].register_forward_hook(partial(self._add, a, b)).remove)
            yield

    def _add(self, a: Tensor, b: Tensor, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        first, (x, *_) = self.first, args
        if first is None or (x.ndim == 2 and first > 0):
            return None
        if first == 0:
            return out + _low_rank(x, a, b).to(out.dtype)
        return torch.cat([out[:, :first], out[:, first:] + _low_rank(x[:, first:], a, b).to(out.dtype)], 1)


def _low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(F.linear(x.to(a.dtype), a.to(x.device)), b.to(x.device))


def _unsplittable(name: str, module: Any) -> str:
    if getattr(module, "merged", False):
        return f"{name} has low-rank weights merged into it, which references must be told from: unmerge them first"
    if any(getattr(module, "use_dora", {}).values() if isinstance(getattr(module, "use_dora", None), dict) else ()):
        return f"{name} has weights of the DoRA type, which do not add up by rows: take that adapter off"
    return ""


def fresh_lora(model: Any, preset: str = "full", rank: int = 16, seed: int = 0) -> dict[str, nn.Parameter]:
    """Low-rank weights to train: A drawn as in PEFT's "gaussian", B zero, so without effect at first.

    Args:
        model: the transformer.
        preset: of `TARGETS`. Layers of the last block that no prediction depends on are left out: queries, MLP and
            output of references are not read there.
    """
    dual, single, embedder = TARGETS[preset]
    last = len(model.single_transformer_blocks) - 1
    names = ["x_embedder"] if embedder else []
    names += [f"transformer_blocks.{at}.{end}" for at in range(len(model.transformer_blocks)) for end in dual]
    names += [
        f"single_transformer_blocks.{at}.{end}"
        for at in range(last + 1)
        for end in single
        if at < last or end not in ("attn.to_q", "proj_mlp", "proj_out")
    ]
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in names:
        layer = model.get_submodule(name)
        layer = getattr(layer, "base_layer", layer)
        drawn = torch.randn(rank, layer.in_features, generator=generator) / rank
        made[f"{name}.lora_A.weight"] = nn.Parameter(drawn.to(layer.weight.device))
        made[f"{name}.lora_B.weight"] = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))
    return made


@torch.no_grad()
def truncated(low_rank: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Low-rank weights of a smaller rank: of each product B A the nearest one (Eckart & Young).

    Args:
        low_rank: "MODULE.lora_A.weight" (r, in) and "MODULE.lora_B.weight" (out, r), applied with scale 1.
        rank: of the result; layers that have no more stay as they are.
    """
    made = dict(low_rank)
    for name in [name for name in low_rank if name.endswith("lora_A.weight")]:
        other = name.replace("lora_A", "lora_B")
        a, b = low_rank[name], low_rank[other]
        if len(a) > rank:
            (left, upper), (right, lower) = torch.linalg.qr(b.float()), torch.linalg.qr(a.float().T)
            u, values, v = torch.linalg.svd(upper @ lower.T)
            root = values[:rank].sqrt()
            made[other] = (left @ u[:, :rank] * root).to(b)
            made[name] = ((right @ v[:rank].T * root).T).contiguous().to(a)
    return made


class _Recording:
    """Stands in the place of an attention processor: plain attention, whose keys and values are kept."""

    _attention_backend = _parallel_config = None

    def __init__(self, name: str, kept: KeysValues) -> None:
        self.name, self.kept = name, kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Any:  # fmt: skip
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        q, k, v = projected(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        self.kept[self.name] = k.flatten(2), v.flatten(2)
        return given_back(attn, dispatch_attention_fn(q, k, v).flatten(2, 3).to(q.dtype), encoder_hidden_states)


def keys_and_values(model: Any, tokens: Tensor, ids: Tensor, modulation: Tensor, lora: RowLora) -> KeysValues:
    """One pass over a reference alone, which reads nothing but itself.

    Args:
        tokens: (B, R, channels) packed latents.
        ids: (R, 3) positions.
        modulation: (B, inner width), `reference_modulation`.
        lora: attached to the model.

    Returns:
        Keys and values of every layer, normed and rotated.
    """
    kept: KeysValues = {}
    before = {name: model.get_submodule(name).processor for name in sites_of(model)}
    try:
        for name in before:
            model.get_submodule(name).processor = _Recording(name, kept)
        with lora.rows(0):
            hidden = model.x_embedder(tokens)
            text = hidden.new_zeros(len(hidden), 0, hidden.shape[-1])
            rotary = model.pos_embed(ids.to(hidden.device))
            for block in (*model.transformer_blocks, *model.single_transformer_blocks):
                text, hidden = type(block).forward(
                    block, hidden_states=hidden, encoder_hidden_states=text, temb=modulation, image_rotary_emb=rotary
                )
    finally:
        for name, processor in before.items():
            model.get_submodule(name).processor = processor
    return kept


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference picture.

    Args:
        tokens: (R, channels) packed latents; or (B, R, channels): another picture for each row of a batch.
        ids: (R, 3) positions, `reference_ids`.
        name: what to call it in messages.
    """

    tokens: Tensor
    ids: Tensor
    name: str = "the reference"


@dataclass
class _Kept:
    """What was computed for one pooled text."""

    pooled: Tensor
    of: tuple[int, ...]
    layers: KeysValues = field(default_factory=dict)


class References(Intervention):
    """References of one run, put on a transformer by `installed`; in the sampler an intervention.

    Attributes:
        items: the references; more may be added while it is installed (`with_reference`).
        mode: "joint" or "independent".
        cache: in "independent", compute keys and values once for each sentence instead of in every step: the same bits.
        null_pooled: their modulation reads zeros for the pooled text: keys and values are the same for all sentences.
        strength: of the attention of text and picture to references: its logarithm is added to the scores; 0: none.
        concepts: for each reference the text's rows that may read it; None: all.
        computed: how many passes over references were made.
    """

    where = Where(kinds=("dual", "single"))

    def __init__(
        self, items: Sequence[Reference], lora: RowLora, mode: Mode = "independent", *, cache: bool = True,
        null_pooled: bool = False, strength: float = 1.0, owner: str = "",
    ) -> None:  # fmt: skip
        self.items, self.lora, self.mode, self.cache = list(items), lora, mode, cache
        self.null_pooled, self.strength, self.owner = null_pooled, strength, owner
        self.concepts: Sequence[Sequence[int]] | None = None
        self.computed = 0
        self._kept: list[_Kept] = []
        self._checked: set[tuple[int, ...]] = set()
        self._layers: KeysValues = {}
        self.text = self.noisy = 0
        self.modulation: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(each.ids) for each in self.items]

    # --- on the model ---

    @contextmanager
    def installed(self, model: Any) -> Iterator[References]:
        """On a transformer for the length of a `with`; on exit it is as before.

        Calls of the transformer within are of text and noisy rows only, so that stock pipelines can make them; the
        attention seam must be attached, too: `attached(model, references)`, which `sample` does.

        Raises:
            ArtefactError, ConfigurationError: as `RowLora.attached`; other references are there already.
        """
        if installed_on(model) is not None:
            raise ConfigurationError("there are references on this transformer already: add to those")
        with ExitStack() as stack:
            stack.enter_context(self.lora.attached(model))
            model.__dict__["_references"] = self
            stack.callback(model.__dict__.pop, "_references")
            stack.callback(model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            if self.mode == "joint":
                stack.callback(model.register_forward_hook(self._after, always_call=True).remove)
                bodies = [(block, dual_body) for block in model.transformer_blocks]
                bodies += [(block, single_body) for block in model.single_transformer_blocks]
                for block, body in bodies:
                    stack.enter_context(_forward(block, partial(body, block, self)))
            yield self

    @contextmanager
    def with_reference(self, reference: Reference) -> Iterator[None]:
        """One more for the length of a `with`."""
        self.items.append(reference)
        try:
            yield
        finally:
            self.items.remove(reference)

    def _before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            raise ThisnessError("call the transformer with names for its inputs while references are on it")
        if (hook := getattr(model, "_hf_hook", None)) is not None:  # offloaded: bring it before it is needed below
            hook.pre_forward(model)
        hidden, pooled, ids = kwargs["hidden_states"], kwargs["pooled_projections"], kwargs["img_ids"]
        self.text, self.noisy = kwargs["encoder_hidden_states"].shape[1], hidden.shape[1]
        self._check_places(ids)
        read = torch.zeros_like(pooled) if self.null_pooled else pooled
        if self.mode == "independent":
            self._layers = self._read(model, read, hidden)
            return args, kwargs
        self.modulation = reference_modulation(model, read)
        self.lora.first = self.noisy
        kwargs["hidden_states"] = torch.cat([hidden, *self._tokens(hidden)], 1)
        kwargs["img_ids"] = torch.cat([ids.float(), *(each.ids.to(ids.device) for each in self.items)])
        return args, kwargs

    def _tokens(self, hidden: Tensor) -> list[Tensor]:
        """Of each reference, (B, R, channels)."""
        return [each.tokens.to(hidden).expand(len(hidden), -1, -1) for each in self.items]

    def _after(self, model: Any, args: Any, output: Any) -> Any:
        self.lora.first = None
        if output is None:
            return None
        if isinstance(output, tuple):
            return (output[0][:, : self.noisy], *output[1:])
        output.sample = output.sample[:, : self.noisy]
        return output

    def _check_places(self, ids: Tensor) -> None:
        """Raises ConfigurationError where a reference stands in the picture."""
        key = (len(ids), *ids[-1].int().tolist(), len(self.items))
        if key in self._checked:
            return
        for each in self.items:
            if overlapping(each.ids, ids.float()):
                raise ConfigurationError(
                    f"{each.name} stands at positions of the picture itself, {int(ids[-1, 1]) + 1} by "
                    f"{int(ids[-1, 2]) + 1} tokens: make a smaller picture, or use a shift of -w"
                )
        self._checked.add(key)

    # --- independent ---

    def _read(self, model: Any, pooled: Tensor, like: Tensor) -> KeysValues:
        """Keys and values of all references for the rows of a call, kept where they were computed before."""
        if not self.items:
            return {}
        one = all(each.tokens.ndim == 2 for each in self.items) and bool((pooled == pooled[:1]).all())
        pooled = pooled[:1] if one else pooled
        of = tuple(map(id, self.items))
        if self.cache:
            for kept in self._kept:
                if kept.of == of and kept.pooled.shape == pooled.shape and torch.equal(kept.pooled, pooled):
                    return kept.layers
        modulation = reference_modulation(model, pooled)
        parts = []
        for each in self.items:
            tokens = each.tokens.to(like).expand(len(pooled), -1, -1)
            parts.append(keys_and_values(model, tokens, each.ids, modulation, self.lora))
            self.computed += 1
        layers: KeysValues = {}
        for name in parts[0]:
            keys, values = zip(*(part[name] for part in parts), strict=True)
            layers[name] = torch.cat(keys, 1), torch.cat(values, 1)
        if self.cache and not torch.is_grad_enabled():
            self._kept = [*self._kept[-3:], _Kept(pooled, of, layers)]
        return layers

    # --- in attention ---

    def qkv(
        self, site: Site, attn: Any, q: Tensor, k: Tensor, v: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self._layers:
            return q, k, v
        more_k, more_v = (each.expand(len(k), -1, -1) for each in self._layers[site.name])
        return q, torch.cat([k, more_k], 1), torch.cat([v, more_v], 1)

    def mask(self, site: Site, q: Tensor, k: Tensor, mask: Tensor | None, context: Context) -> Tensor | None:
        own = self._bias(q)
        if own is None or mask is None:
            return mask if own is None else own
        return own + mask

    def _bias(self, q: Tensor) -> Tensor | None:
        """(1, 1, Lq, Lk), what is added to the scores; None for nothing."""
        main = self.text + self.noisy
        allowed = attention_mask(self.text, self.noisy, self.lengths, self.mode, self.concepts)
        plain = self.concepts is None and (self.mode == "independent" or len(self.items) < 2)
        if plain and self.strength == 1:
            return None
        total = main + sum(self.lengths)
        bias = torch.zeros(total, total)
        if allowed is not None:
            bias.masked_fill_(~allowed, -math.inf)
        bias[:main, main:] += math.log(self.strength) if self.strength > 0 else -math.inf
        return bias[: q.shape[-2]].to(q.device, q.dtype)[None, None]


def installed_on(model: Any) -> References | None:
    """The references that are on a transformer."""
    return model.__dict__.get("_references")


@contextmanager
def _forward(block: nn.Module, body: Callable[..., Any]) -> Iterator[None]:
    """Another forward of a module; afterwards it is what it was."""
    had, before = "forward" in block.__dict__, block.__dict__.get("forward")
    block.__dict__["forward"] = body
    try:
        yield
    finally:
        if had:
            block.__dict__["forward"] = before
        else:
            del block.__dict__["forward"]


def _by_row(main: Tensor, other: Tensor, counts: tuple[int, int]) -> Tensor:
    """Two modulations (B, width), each for some rows: (B, rows, width)."""
    return torch.cat([main[:, None].expand(-1, counts[0], -1), other[:, None].expand(-1, counts[1], -1)], 1)


def dual_body(
    block: Any,
    state: References,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """A block of two streams over the rows [noisy; references], which are modulated apart."""
    first, text = state.noisy, encoder_hidden_states
    counts = (first, hidden_states.shape[1] - first)
    assert state.modulation is not None
    with state.lora.rows(first):
        normed, *of_main = block.norm1(hidden_states[:, :first], emb=temb)
        with state.lora.rows(0):
            normed_too, *of_references = block.norm1(hidden_states[:, first:], emb=state.modulation)
        by_row = [_by_row(one, other, counts) for one, other in zip(of_main, of_references, strict=True)]
        gate, shift_mlp, scale_mlp, gate_mlp = by_row
        normed_text, text_gate, text_shift, text_scale, text_gate_mlp = block.norm1_context(text, emb=temb)
        attended, attended_text = block.attn(
            hidden_states=torch.cat([normed, normed_too], 1),
            encoder_hidden_states=normed_text,
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        hidden = hidden_states + gate * attended
        hidden = hidden + gate_mlp * block.ff(block.norm2(hidden) * (1 + scale_mlp) + shift_mlp)
        text = text + text_gate.unsqueeze(1) * attended_text
        moved = block.norm2_context(text) * (1 + text_scale[:, None]) + text_shift[:, None]
        text = text + text_gate_mlp.unsqueeze(1) * block.ff_context(moved)
    return _finite(text), hidden


def single_body(
    block: Any,
    state: References,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """A block of one stream over the rows [text; noisy; references]."""
    length = encoder_hidden_states.shape[1]
    first = length + state.noisy
    hidden = torch.cat([encoder_hidden_states, hidden_states], 1)
    counts = (first, hidden.shape[1] - first)
    assert state.modulation is not None
    with state.lora.rows(first):
        normed, gate = block.norm(hidden[:, :first], emb=temb)
        with state.lora.rows(0):
            normed_too, gate_too = block.norm(hidden[:, first:], emb=state.modulation)
        normed = torch.cat([normed, normed_too], 1)
        mlp = block.act_mlp(block.proj_mlp(normed))
        attended = block.attn(hidden_states=normed, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
        out = _by_row(gate, gate_too, counts) * block.proj_out(torch.cat([attended, mlp], 2))
    hidden = _finite(hidden + out)
    return hidden[:, :length], hidden[:, length:]


def _finite(hidden: Tensor) -> Tensor:
    return hidden.clip(-65504, 65504) if hidden.dtype == torch.float16 else hidden
