"""Learning steps a second: ours against a loop in the manner of the diffusers example scripts.

    .venv/bin/python benchmarks/learning.py                              all methods
    .venv/bin/python benchmarks/learning.py --methods detex --steps 25
    .venv/bin/python benchmarks/learning.py --base random:sd1.5 --device cuda --precision bf16 --class-pictures 4

Both train the same weights of the same denoiser, on the same pictures and rows, with the same optimizer and
precision, in the same process, in turns. The plain loop does in every step what those scripts do: open and scale the
pictures, encode them by the VAE, tokenize and encode the sentences; for DETEX, of which there is no script, it also
encodes the pictures by CLIP for the mappers and keeps all attention maps for the loss on them. Targets are of steps:
1.3 times on the embedded base on a CPU; 1.4 (dreambooth) and 1.6 with SD 1.5 in its size on a GPU.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from full_size import RANDOM, opened
from measure import median_ratio, parser, report, spread
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thisness.bases import Base
from thisness.generation import generate
from thisness.methods import learn
from thisness.playroom.subjects import held_out_identity, write_subject
from thisness.subject import Subject

TARGETS = {
    "textual-inversion": 1.3,
    "dreambooth": 1.3,
    "dreambooth-lora": 1.5,
    "custom-diffusion": 1.3,
    "detex": 1.3,
}
FULL_TARGETS = dict.fromkeys(TARGETS, 1.6) | {"dreambooth": 1.4}
WITH_PRIOR = ("dreambooth", "dreambooth-lora", "custom-diffusion", "detex")
WARM = 25  # steps before the clock starts; the log of the loop has a line at every 25th
IDENTIFIER = "sks"
CLIP = Path(str(resources.files("thisness"))) / "playroom" / "weights" / "clip"
SIDE = 2  # of the latents over that of the attention maps in DETEX's loss


class PlainPictures(Dataset):
    """Pictures of the subject and of the class, opened and tokenized anew each time, as the example scripts do it."""

    def __init__(self, own: list[Path], of_class: list[Path], noun: str, tokenizer: Any, size: int, word: str) -> None:
        self.own, self.of_class, self.tokenizer, self.size = own, of_class, tokenizer, size
        self.sentences = (f"a photo of a {word} {noun}", f"a photo of a {noun}")

    def __len__(self) -> int:
        return len(self.of_class)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        own = self.own[index % len(self.own)]
        mask = Image.open(own.with_name(f"{own.stem}_mask.png")).convert("L").resize((self.size, self.size))
        return {
            "pixels": torch.stack([self._pixels(path) for path in (own, self.of_class[index])]),
            "ids": torch.cat([self._ids(sentence) for sentence in self.sentences]),
            "masks": torch.from_numpy(np.array(mask)).float()[None, None] / 255,
        }

    def _pixels(self, path: Path) -> Tensor:
        image = Image.open(path).convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    def _ids(self, sentence: str) -> Tensor:
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            sentence, truncation=True, padding="max_length", max_length=length, return_tensors="pt"
        ).input_ids


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """First the subject's rows, then those of the class."""
    return {key: torch.stack([row[key] for row in rows]).transpose(0, 1).flatten(0, 1) for key in rows[0]}


class KeepProbabilities:
    """An attention processor that keeps what it attends to, written out as in diffusers' `AttnProcessor`."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(layer(x))
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        probabilities = attn.get_attention_scores(query, key)
        if encoder_hidden_states is not None:
            self.kept.append(probabilities.unflatten(0, (-1, attn.heads)).mean(1))
        return attn.to_out[0](attn.batch_to_head_dim(probabilities @ value))


class Plain:
    """What a script trains: the modules, and what it does to the text.

    Args:
        base, method, given: of the run; the base is copied, so that nothing of it changes.
        noun: of the class.
    """

    def __init__(self, base: Base, method: str, given: Any, noun: str) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0
        from peft import LoraConfig

        self.method, self.base = method, base
        self.unet = copy.deepcopy(base.denoiser).requires_grad_(method == "dreambooth")
        self.text_encoder, self.tokenizer = copy.deepcopy(base.text_encoder), copy.deepcopy(base.tokenizer)
        self.unet.set_attn_processor(AttnProcessor2_0())
        self.kept: list[Tensor] = []
        self.parts: list[torch.nn.Module] = []
        if method == "dreambooth-lora":
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            how = LoraConfig(r=given.rank, lora_alpha=given.rank, init_lora_weights="gaussian", target_modules=targets)
            self.unet.add_adapter(how)
        if method in ("custom-diffusion", "detex"):
            for name, weight in self.unet.named_parameters():
                weight.requires_grad_(".attn2.to_k" in name or ".attn2.to_v" in name)
        self.rows: Tensor | None = None
        self.word = IDENTIFIER
        if method in ("textual-inversion", "custom-diffusion", "detex"):
            new = ["<v>", "<p>", "<b>"][: 3 if method == "detex" else 1]
            self.word = "<v>" if method != "detex" else "<v> <p> <b>"
            self.tokenizer.add_tokens(new)
            self.text_encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            self.rows = self.text_encoder.get_input_embeddings().weight.requires_grad_(True)
            self.before = self.rows.detach().clone()
            self.new = torch.tensor(self.tokenizer.convert_tokens_to_ids(new))
        if method == "detex":
            self._prepare_detex()
        weights = [p for m in (self.unet, *self.parts) for p in m.parameters() if p.requires_grad]
        self.weights = [*weights, *([self.rows] if self.rows is not None else [])]

    def _prepare_detex(self) -> None:
        from transformers import CLIPVisionModelWithProjection

        from thisness.methods.detex_words import Mapper

        self.clip = CLIPVisionModelWithProjection.from_pretrained(CLIP).eval().requires_grad_(False)
        some = torch.eye(2, self.clip.config.projection_dim)
        draws = torch.Generator().manual_seed(0)
        self.parts = [Mapper(some, self.before[0], draws).to(self.base.device) for _ in range(2)]
        self.unet.set_attn_processor(KeepProbabilities(self.kept))
        self.text_encoder.get_input_embeddings().register_forward_hook(self._put_in)

    def _put_in(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """The mapped words of each row of the subject where <p> and <b> stand."""
        if self.mapped is None:
            return output
        for token, rows in zip(self.new[1:].tolist(), self.mapped, strict=True):
            at = (args[0] == token).float()[..., None]
            wide = torch.cat([rows, rows.new_zeros(len(output) - len(rows), rows.shape[1])])
            output = output * (1 - at) + at * wide[:, None]
        return output

    def embed(self, ids: Tensor, pixels: Tensor) -> Tensor:
        self.mapped = None
        if self.method == "detex":
            own = pixels[: len(pixels) // 2]
            side = self.clip.config.image_size
            with torch.no_grad():
                seen = self.clip(torch.nn.functional.interpolate(own, (side, side), mode="bicubic")).image_embeds
            self.mapped = [part(seen) for part in self.parts]
        with nullcontext() if self.rows is not None else torch.no_grad():
            return self.text_encoder(ids)[0]

    def further(self, ids: Tensor, masks: Tensor) -> Tensor:
        """DETEX's loss on attention."""
        side = self.base.latent_shape(self.base.resolution, self.base.resolution)[-1] // SIDE
        maps = torch.stack([each for each in self.kept if each.shape[1] == side**2]).mean(0)[: len(masks)]
        inside = torch.nn.functional.interpolate(masks, (side, side), mode="area").flatten(1)
        total = maps.new_zeros(())
        for token, wanted in zip(self.new[1:].tolist(), (inside, 1 - inside), strict=True):
            own = torch.stack([row[:, int((i == token).nonzero()[0])] for row, i in zip(maps, ids, strict=False)])
            total = total + (own / own.amax(1, keepdim=True) - wanted).square().mean()
        self.kept.clear()
        return 0.01 * total

    def restore(self) -> None:
        """All words but the new ones as they were, as the scripts do it after each step."""
        if self.rows is not None:
            with torch.no_grad():
                others = torch.ones(len(self.rows), dtype=torch.bool)
                others[self.new] = False
                self.rows[others] = self.before[others]


def plain_steps(base: Base, method: str, own: list[Path], of_class: list[Path], noun: str, given: Any) -> float:
    """Steps a second of the plain loop, after WARM steps."""
    from diffusers import DDPMScheduler

    plain = Plain(base, method, given, noun)
    pictures = PlainPictures(own, of_class, noun, plain.tokenizer, base.resolution, plain.word)
    optimizer = torch.optim.AdamW(plain.weights, lr=given.lr)
    scheduler = DDPMScheduler.from_config(base.scheduler.config)
    loader = DataLoader(pictures, batch_size=given.batch, shuffle=True, collate_fn=collate, drop_last=True)
    done, start = 0, 0.0
    while done < WARM + given.steps:
        for batch in loader:
            if done == WARM:
                start = time.perf_counter()
            if done == WARM + given.steps:
                break
            rows = slice(None) if method in WITH_PRIOR else slice(given.batch)
            pixels, ids = batch["pixels"][rows].to(base.device), batch["ids"][rows].to(base.device)
            with torch.autocast(base.device.type, torch.bfloat16) if given.precision == "bf16" else nullcontext():
                with torch.no_grad():
                    latents = base.vae.encode(pixels).latent_dist.sample() * base.vae.config.scaling_factor
                embeds = plain.embed(ids, pixels)
                noise = torch.randn_like(latents)
                last = scheduler.config.num_train_timesteps
                timesteps = torch.randint(0, last, (len(latents),), device=latents.device)
                noisy = scheduler.add_noise(latents, noise, timesteps)
                prediction = plain.unet(noisy, timesteps, embeds, return_dict=False)[0]
            velocity = base.prediction_type == "v_prediction"
            wanted = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
            loss = sum(each.mean() for each in (prediction.float() - wanted.float()).pow(2).split(given.batch))
            if method == "detex":
                loss = loss + plain.further(ids, batch["masks"].to(base.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            plain.restore()
            loss.detach().item()  # the scripts show it on their bar in every step
            done += 1
    return given.steps / (time.perf_counter() - start)


def our_steps(base: Base, method: str, subject: Subject, given: Any) -> float:
    """Steps a second of `learn`, after WARM steps, by its own log."""
    more: dict[str, Any] = {}
    if method in WITH_PRIOR:
        more |= {"prior_batch": given.batch, "prior_pictures": given.class_pictures}
    if method.startswith("dreambooth"):
        more |= {"identifier": IDENTIFIER}
    if method == "dreambooth-lora":
        more |= {"rank": given.rank}
    if method == "detex":  # as the plain loop: every picture with its background, words that the base can read
        more |= {"gamma": 0.0, "pose_words": "{word}", "background_words": "in the {word}", "captions": "plain"}
        more |= {"pose_start": "sitting", "background_start": "beach", "image_encoder": "playroom-clip"}
    with tempfile.TemporaryDirectory() as folder:
        learn(
            method, subject, base, folder=Path(folder) / "concept", progress=False, preset="default",
            steps=WARM + given.steps, lr=given.lr, batch_size=given.batch, precision=given.precision, **more,
        )  # fmt: skip
        lines = [json.loads(line) for line in (Path(folder) / "concept/log.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return given.steps / (seconds[WARM + given.steps] - seconds[WARM])


def main() -> None:
    options = parser(str(__doc__), repeats=3)
    options.add_argument("--methods", default=",".join(TARGETS), help="by commas")
    options.add_argument("--base", default="playroom-sd", help="embedded name, local folder, hub id, random:sd1.5")
    options.add_argument("--steps", type=int, default=50, help="steps that count in each round; a multiple of 25")
    options.add_argument("--batch", type=int, default=4, help="rows of the subject, and as many of the class")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--lr", type=float, default=1e-4)
    options.add_argument("--class-pictures", type=int, default=16)
    options.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of both")
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    base = opened(given.base, given.device)
    targets = FULL_TARGETS if given.base.startswith(RANDOM) else TARGETS
    noun = held_out_identity(0).noun
    methods = given.methods.split(",")
    rates: dict[tuple[str, str], list[float]] = {(m, loop): [] for m in methods for loop in ("plain", "ours")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THISNESS_CACHE"] = str(Path(folder) / "cache")
        references = write_subject(Path(folder) / "subject", 0)
        own = sorted(path for path in references.glob("*.png") if "mask" not in path.name)
        subject = Subject.from_folder(references, noun)
        of_class = generate(base, f"a photo of a {noun}", seeds=range(given.class_pictures), batch_size=8)
        paths = [path for path in of_class.save(Path(folder) / "class")]
        for turn in range(given.repeats):
            for method in methods:
                for loop in ("plain", "ours") if turn % 2 == 0 else ("ours", "plain"):
                    if loop == "plain":
                        rate = plain_steps(base, method, own, paths, noun, given)
                    else:
                        rate = our_steps(base, method, subject, given)
                    rates[method, loop].append(rate)
                print(f"round {turn + 1}/{given.repeats}: {method}", file=sys.stderr, flush=True)
    rows = []
    for method in methods:
        plain, ours = rates[method, "plain"], rates[method, "ours"]
        values = {"method": method, "plain steps/s": statistics.median(plain), "ours": statistics.median(ours)}
        rows.append({**values, "+-": spread(ours), "ratio": median_ratio(ours, plain), "target": targets[method]})
    report(
        f"Learning on {base.name}, {base.resolution}x{base.resolution}: {given.batch} rows of the subject (and of the "
        f"class, where the method takes them), {given.precision}, {given.steps} steps, {given.repeats} rounds",
        rows,
        given.json,
    )


if __name__ == "__main__":
    main()
