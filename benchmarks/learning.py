"""Learning steps a second: ours against a loop in the manner of the diffusers example scripts.

    .venv/bin/python benchmarks/learning.py

Both train low-rank weights of the same denoiser by DreamBooth with prior preservation, on the same pictures, rows,
rank, optimizer and precision, in the same process, in turns. The plain loop does in every step what those scripts do:
open and scale the pictures, encode them by the VAE, tokenize and encode the sentences. Target: 1.5 times its steps.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import median_ratio, parser, report, spread
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thisness.bases import Base, load_base
from thisness.generation import generate
from thisness.methods import learn
from thisness.playroom.subjects import held_out_identity, write_subject
from thisness.subject import Subject

TARGET = 1.5
WARM = 25  # steps before the clock starts; the log of the loop has a line at every 25th
IDENTIFIER = "sks"


class PlainPictures(Dataset):
    """Pictures of the subject and of the class, opened and tokenized anew each time, as the example scripts do it."""

    def __init__(self, own: list[Path], of_class: list[Path], noun: str, tokenizer: Any, size: int) -> None:
        self.own, self.of_class, self.tokenizer, self.size = own, of_class, tokenizer, size
        self.sentences = (f"a photo of a {IDENTIFIER} {noun}", f"a photo of a {noun}")

    def __len__(self) -> int:
        return len(self.of_class)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pictures = (self.own[index % len(self.own)], self.of_class[index])
        return {
            "pixels": torch.stack([self._pixels(path) for path in pictures]),
            "ids": torch.cat([self._ids(sentence) for sentence in self.sentences]),
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


def plain_steps(base: Base, pictures: PlainPictures, given: Any, bf16: bool) -> float:
    """Steps a second of the plain loop, after WARM steps."""
    from diffusers import DDPMScheduler
    from diffusers.models.attention_processor import AttnProcessor2_0
    from peft import LoraConfig

    unet, vae, text_encoder = copy.deepcopy(base.denoiser), base.vae, base.text_encoder
    unet.set_attn_processor(AttnProcessor2_0())
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(
        LoraConfig(r=given.rank, lora_alpha=given.rank, init_lora_weights="gaussian", target_modules=targets)
    )
    weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=given.lr)
    scheduler = DDPMScheduler.from_config(base.scheduler.config)
    loader = DataLoader(pictures, batch_size=given.batch, shuffle=True, collate_fn=collate, drop_last=True)
    done, start = 0, 0.0
    while done < WARM + given.steps:
        for batch in loader:
            if done == WARM:
                start = time.perf_counter()
            if done == WARM + given.steps:
                break
            pixels, ids = batch["pixels"].to(base.device), batch["ids"].to(base.device)
            with torch.autocast(base.device.type, torch.bfloat16) if bf16 else nullcontext():
                with torch.no_grad():
                    latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
                    embeds = text_encoder(ids)[0]
                noise = torch.randn_like(latents)
                last = scheduler.config.num_train_timesteps
                timesteps = torch.randint(0, last, (len(latents),), device=latents.device)
                noisy = scheduler.add_noise(latents, noise, timesteps)
                prediction = unet(noisy, timesteps, embeds, return_dict=False)[0]
            velocity = base.prediction_type == "v_prediction"
            wanted = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
            own, prior = (prediction.float() - wanted.float()).pow(2).chunk(2)
            loss = own.mean() + prior.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.detach().item()  # the scripts show it on their bar in every step
            done += 1
    return given.steps / (time.perf_counter() - start)


def our_steps(base: Base, subject: Subject, given: Any, precision: str) -> float:
    """Steps a second of `learn`, after WARM steps, by its own log."""
    with tempfile.TemporaryDirectory() as folder:
        learn(
            "dreambooth-lora",
            subject,
            base,
            folder=Path(folder) / "concept",
            progress=False,
            preset="default",
            steps=WARM + given.steps,
            lr=given.lr,
            batch_size=given.batch,
            prior_batch=given.batch,
            prior_pictures=given.class_pictures,
            rank=given.rank,
            identifier=IDENTIFIER,
            precision=precision,
        )
        lines = [json.loads(line) for line in (Path(folder) / "concept/log.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return given.steps / (seconds[WARM + given.steps] - seconds[WARM])


def main() -> None:
    options = parser(str(__doc__), repeats=3)
    options.add_argument("--base", default="playroom-sd", help="embedded name, local folder or hub id")
    options.add_argument("--steps", type=int, default=50, help="steps that count in each round; a multiple of 25")
    options.add_argument("--batch", type=int, default=4, help="rows of the subject, and as many of the class")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--lr", type=float, default=1e-4)
    options.add_argument("--class-pictures", type=int, default=16)
    options.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of both")
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    base = load_base(given.base, device=given.device)
    noun = held_out_identity(0).noun
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THISNESS_CACHE"] = str(Path(folder) / "cache")
        references = write_subject(Path(folder) / "subject", 0)
        own = sorted(path for path in references.glob("*.png") if "mask" not in path.name)
        subject = Subject.from_folder(references, noun)
        of_class = generate(base, f"a photo of a {noun}", seeds=range(given.class_pictures), batch_size=8)
        paths = [path for path in of_class.save(Path(folder) / "class")]
        pictures = PlainPictures(own, paths, noun, base.tokenizer, base.resolution)
        for turn in range(given.repeats):
            for name in ("plain", "ours") if turn % 2 == 0 else ("ours", "plain"):
                if name == "plain":
                    rates[name].append(plain_steps(base, pictures, given, given.precision == "bf16"))
                else:
                    rates[name].append(our_steps(base, subject, given, given.precision))
            print(f"round {turn + 1}/{given.repeats}", file=sys.stderr, flush=True)
    rows = [
        {"loop": name, "steps/s": statistics.median(values), "+-": spread(values)} for name, values in rates.items()
    ]
    report(
        f"Learning by dreambooth-lora: {base.name}, {base.resolution}x{base.resolution}, {given.batch} rows of the "
        f"subject and of the class, rank {given.rank}, {given.precision}, {given.steps} steps, {given.repeats} rounds",
        rows,
        given.json,
        ratio=median_ratio(rates["ours"], rates["plain"]),
        target_ratio=TARGET,
    )


if __name__ == "__main__":
    main()
