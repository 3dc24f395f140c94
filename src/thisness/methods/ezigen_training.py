"""What EZIGen's adapter is trained by: the loss of a batch of pairs, whatever the data.

    adapter = EZIGenAdapter.of(base.denoiser)
    training = EZIGenTraining(base, adapter, TrainingConfig())
    optimizer = AdamW(parameter_groups(adapter))
    for ...:
        no_subject, no_text = drops(count, rng)         # first: subjects that are dropped need not be read
        parts = training.loss(Batch(targets, sentences, counts, subjects, words, mask), rng)
        parts["loss"].backward()
    save_weights(FOLDER, base, adapter)                 # what `weights=FOLDER` of the method reads

    subjects, noised at the least noisy step, through the frozen denoiser        `EZIGenTraining.keys`
    z_t of the target, eq. 3 at every block, the denoiser's own target           `EZIGenTraining.errors`
    a dropped subject is absent: no keys, neither zeros nor grey pictures        `TrainedSubjects`, `drops`
    the loss with the right subject, with another row's, with none               `EZIGenTraining.gap`

Source: Duan et al., EZIGen (arXiv 2409.08091), training; docs/ezigen.md says what differs from paper and code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import Context, attached
from ..attention.context import Row
from ..bases import Base
from ..conditioning import Conditioning, encode
from ..errors import ConfigurationError
from ..files import save_tensors, write_json
from ..training.diffusion import cumulative_alphas, noised, target
from .ezigen import reading
from .ezigen_adapter import UNSUBJECT, EZIGenAdapter, KeysValues, SubjectAttention
from .zero_shot import CONFIG, WEIGHTS

PROMPT = "a photo of a {noun}"
REFERENCE_STEP = 1  # T_sub
GATE_LR = 1e-2
GAP_LEVELS = (0.02, 0.6)  # of the noise schedule, between which `gap` measures


@dataclass(frozen=True)
class TrainingConfig:
    """What decides the loss besides the data.

    Args:
        subject_weight: added to the loss's weight of 1 where the mask is.
        drop_subject: share of the rows without a subject, those without text among them included.
        drop_both: of those, the share of all rows that have no text either.
        drop_text: share of the rows that have a subject and no text.
        late: share of the rows whose noise levels are drawn from the lower half, where the subject is drawn.

    Raises:
        ConfigurationError: values out of range; all of it at once.
    """

    subject_weight: float = 2.0
    drop_subject: float = 0.2
    drop_both: float = 0.05
    drop_text: float = 0.05
    late: float = 0.5

    def __post_init__(self) -> None:
        shares = ("drop_subject", "drop_both", "drop_text", "late")
        wrong = [f"{key} {value}" for key in shares if not 0 <= (value := getattr(self, key)) <= 1]
        wrong += [f"subject_weight {self.subject_weight}"] if not 0 <= self.subject_weight <= 100 else []
        if not wrong and (self.drop_both > self.drop_subject or self.drop_subject + self.drop_text > 1):
            wrong.append(f"drop_both {self.drop_both}, drop_subject {self.drop_subject}, drop_text {self.drop_text}")
        if wrong:
            raise ConfigurationError(
                f"{'; '.join(wrong)}: expected shares in 0 ... 1, drop_both no more than drop_subject, and "
                "subject_weight in 0 ... 100"
            )


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs: what is read, and what is drawn.

    Args:
        targets: (B, C, h, w) latents to draw, in the denoiser's scale.
        sentences: (B) what each shows; "" where the text is dropped.
        counts: (B) how many subjects each row reads; 0 where they are dropped.
        subjects: (sum of counts, C, h, w) latents of the subjects before white, in the denoiser's scale, row by row.
        words: what is read with each of them, a row each; None where there are none.
        mask: (B, 1, H, W) in [0, 1], the subjects in the targets, of any size; None for none.
    """

    targets: Tensor
    sentences: Sequence[str]
    counts: Sequence[int]
    subjects: Tensor
    words: Conditioning | None
    mask: Tensor | None = None

    @property
    def reads(self) -> list[list[int]]:
        """Numbers of the subjects of each row."""
        found, start = [], 0
        for count in self.counts:
            found.append(list(range(start, start + count)))
            start += count
        return found


class TrainedSubjects(SubjectAttention):
    """As `SubjectAttention`, with rows that read any number of subjects, all keys of a row side by side.

    Args:
        adapter: for the denoiser.
        subjects: keys and values of all subjects at each site, a row each.
        reads: for each row of the batch, which of them.
    """

    def __init__(self, adapter: EZIGenAdapter, subjects: Sequence[KeysValues], reads: Sequence[Sequence[int]]) -> None:
        super().__init__(adapter, subjects)
        self.reads = [list(each) for each in reads]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Roles of the batch's rows."""
        return tuple(Row("cond" if each else UNSUBJECT, n) for n, each in enumerate(self.reads))

    def told(self, n: int, hidden: Tensor, rows: list[int], context: Context) -> Tensor:
        site: Any = self.adapter.sites[n]
        reads = [self.reads[context.rows[i].sample] for i in rows]
        out = hidden
        for count in sorted({len(each) for each in reads}):
            at = [i for i, each in enumerate(reads) if len(each) == count]
            which = [number for i in at for number in reads[i]]
            keys, values = (
                each[which].unflatten(0, (len(at), count)).flatten(1, 2)
                for each in (self.subject[n].keys, self.subject[n].values)
            )
            index = torch.tensor(at, device=hidden.device)
            new = site(hidden if len(at) == len(hidden) else hidden[index], KeysValues(keys, values), self.scale)
            if len(at) == len(hidden):
                return new
            out = out.index_copy(0, index, new)
        return out


class EZIGenTraining:
    """The loss of batches on a base that stays as it is.

    Args:
        base: with a UNet and a noise schedule; move it before the first loss.
        adapter: what gets gradients.
        config: how.

    Raises:
        ConfigurationError: a base without a noise schedule.
    """

    def __init__(self, base: Base, adapter: EZIGenAdapter, config: TrainingConfig | None = None) -> None:
        self.base, self.adapter, self.config = base, adapter, config or TrainingConfig()
        self.alphas = cumulative_alphas(base.scheduler)

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """One batch's "loss", and for the log "gate", how far the gates are open.

        Args:
            batch: what was dropped is not in it any more.
            rng: on the CPU: noise levels, noise, and the noise under which subjects are read, one for all of them.
        """
        t = timesteps(len(batch.targets), rng, len(self.alphas), self.config.late)
        noise = torch.randn(batch.targets.shape, generator=rng)
        seen = torch.randn((1, *batch.targets.shape[1:]), generator=rng)
        keys = self.keys(batch, seen)
        errors, weight = self.errors(batch, noise, t, keys, batch.reads)
        found = {"loss": (errors * weight).mean() / weight.mean()}
        gates = [p.detach() for n, p in self.adapter.named_parameters() if n.endswith("gate")]
        if gates:
            found["gate"] = torch.stack(gates).abs().mean()
        return found

    def keys(self, batch: Batch, noise: Tensor, adapter: EZIGenAdapter | None = None) -> list[KeysValues]:
        """What the adapter reads of the batch's subjects at each site, a row each; gradients flow to the adapter.

        Args:
            batch: of which the subjects and their words are read.
            noise: (1, C, h, w).
            adapter: another one than that which is trained: its average.
        """
        adapter, base = adapter or self.adapter, self.base
        if batch.words is None or not len(batch.subjects):
            return []
        subjects = batch.subjects.to(base.device)
        alpha = self.alphas[REFERENCE_STEP].to(base.device).expand(len(subjects))
        noisy = noised(subjects, noise.to(base.device).expand_as(subjects), alpha)
        with torch.no_grad(), reading(base.denoiser, adapter.names) as features:
            base.predict(noisy.to(base.dtype), torch.tensor(REFERENCE_STEP, device=base.device), batch.words)
        return adapter.project(list(features.values()))

    def errors(
        self, batch: Batch, noise: Tensor, t: Tensor, keys: Sequence[KeysValues], reads: Sequence[Sequence[int]],
        adapter: EZIGenAdapter | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Squared errors (B, C, h, w), and weights (B, 1, h, w).

        Args:
            batch: of which targets, sentences and mask are read.
            noise: (B, C, h, w).
            t: (B,) steps of the noise schedule.
            keys: of `keys`; not read where nobody reads.
            reads: for each row, which subjects.
            adapter: another one than that which is trained.
        """
        base, device = self.base, self.base.device
        clean, noise, t = batch.targets.to(device), noise.to(device), t.to(device)
        alpha = self.alphas.to(device)[t]
        noisy, wanted = noised(clean, noise, alpha), target(clean, noise, alpha, base.prediction_type)
        with torch.no_grad():
            text = encode(base, batch.sentences)
        acting = TrainedSubjects(adapter or self.adapter, keys, reads)
        with attached(base.denoiser, acting) as context:
            context.rows = acting.rows
            prediction = base.predict(noisy.to(base.dtype), t, text)
        if batch.mask is None:
            weight = torch.ones_like(clean[:, :1])
        else:
            height, width = clean.shape[-2:]
            weight = 1 + self.config.subject_weight * F.adaptive_avg_pool2d(batch.mask.to(device), (height, width))
        return (prediction.float() - wanted) ** 2, weight

    @torch.no_grad()
    def gap(self, batch: Batch, rng: torch.Generator, adapter: EZIGenAdapter | None = None) -> dict[str, float]:
        """The loss with the "right" subjects, with those of the row before ("swapped"), and with none ("absent").

        The adapter is used if the first is the least; "gap" is swapped less right. Noise levels are spread over those
        at which a subject is drawn.
        """
        low, high = (share * len(self.alphas) for share in GAP_LEVELS)
        noise, t = torch.randn(batch.targets.shape, generator=rng), torch.linspace(low, high, len(batch.targets)).long()
        keys = self.keys(batch, torch.randn((1, *batch.targets.shape[1:]), generator=rng), adapter)
        right = batch.reads
        losses = {}
        for name, reads in (("right", right), ("swapped", [right[-1], *right[:-1]]), ("absent", [[] for _ in right])):
            errors, weight = self.errors(batch, noise, t, keys, reads, adapter)
            losses[name] = float((errors * weight).mean() / weight.mean())
        return {**losses, "gap": losses["swapped"] - losses["right"]}


def drops(
    count: int, rng: torch.Generator, config: TrainingConfig | None = None
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Which rows have no subject, and which no text, (count,) bool both."""
    config = config or TrainingConfig()
    draw = torch.rand(count, generator=rng).numpy()
    both = draw < config.drop_both
    subject = (draw >= config.drop_both) & (draw < config.drop_subject)
    text = (draw >= config.drop_subject) & (draw < config.drop_subject + config.drop_text)
    return subject | both, text | both


def timesteps(count: int, rng: torch.Generator, steps: int = 1000, late: float = 0.5) -> Tensor:
    """(count,) int64: uniform in 0 ... steps - 1, a share `late` of them in the lower half."""
    high = torch.where(torch.rand(count, generator=rng) < 1 - late, steps, steps // 2)
    return (torch.rand(count, generator=rng) * high).long()


def parameter_groups(adapter: EZIGenAdapter, gate_lr: float = GATE_LR) -> list[dict[str, Any]]:
    """For an optimizer: gates at a rate of their own; no weight decay on them, norms, biases and scales."""
    named = dict(adapter.named_parameters())
    gates = [p for n, p in named.items() if n.endswith("gate")]
    plain = [p for n, p in named.items() if p.ndim == 1 or n.endswith("feature_scale")]
    matrices = [p for p in named.values() if p.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": plain, "weight_decay": 0.0}]
    if gates:
        groups.append({"params": gates, "weight_decay": 0.0, "lr": gate_lr})
    return groups


def save_weights(folder: Path, base: Base, adapter: EZIGenAdapter, prompt: str = PROMPT, **more: Any) -> None:
    """Write config.json and model.safetensors in half precision: what `weights=FOLDER` reads.

    Args:
        folder: made if need be.
        base: that it was trained on.
        adapter: whose weights.
        prompt: with which subjects were read.
        more: further entries of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "method": "ezigen", "base": base.signature, "base_name": base.name, "prompt": prompt, **adapter.sizes, **more,
    }  # fmt: skip
    save_tensors(folder / WEIGHTS, {n: t.half().cpu() for n, t in adapter.state_dict().items()})
    write_json(folder / CONFIG, config)
