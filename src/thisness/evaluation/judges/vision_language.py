"""A vision-language model on this machine as a judge: any that transformers reads as image-text-to-text.

Two modes, which are two different measurements: `sample` follows the protocol (sampled answers, three passes);
`expected` asks once for the score alone and takes the expectation over the tokens 0 ... 4 after "Score:", which is
the same every time and has no noise of sampling.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError, raise_all
from ...files import sha256
from ..items import Picture
from .answers import Answer
from .column import Column
from .openai import SIDE
from .protocol import TOP, Question, content_hash, parse_score
from .rating import Asked, RatingJudge, RatingSettings

logger = logging.getLogger(__name__)
DIGITS = tuple(str(number) for number in range(TOP + 1))
LEAST_MASS = 0.5  # of the probability after "Score:" that should lie on the five numbers


@dataclass(frozen=True)
class Settings(RatingSettings):
    """Of a local model.

    Args:
        model: hub id or folder.
        revision: of the hub's.
        mode: "sample" or "expected" (one pass, no temperature).
        dtype: "auto": float32 on the CPU, what the model was saved in elsewhere.
        asks: how often a question is asked at most until its answer has exactly one score.
        max_tokens: of an answer.
    """

    model: str = ""
    revision: str | None = None
    mode: Literal["sample", "expected"] = "sample"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    asks: int = 3
    max_tokens: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_all(
            ["model is not set: expected a hub id or a folder"] * (not self.model)
            + [f"asks is {self.asks}: expected 1 ... 20"] * (not 1 <= self.asks <= 20)
            + [f"max_tokens is {self.max_tokens}: expected 4 or more"] * (self.max_tokens < 4)
        )


def make(settings: Settings, context: Any) -> list[Column]:
    """Columns of a local model: `transformers:cp`, or `transformers-expected:cp` in that mode.

    Raises:
        UserError: there is no such model, or it is none of this kind.
    """
    rater = LocalRater(settings, context.device)
    if settings.mode == "expected":
        settings = replace(settings, passes=1, temperature=0.0)
    return list(RatingJudge(rater, settings, context.open_answers(), context.say).columns)


def expectation(logits: Sequence[float]) -> tuple[float, list[float]]:
    """Expected score over five logits, for 0 ... 4, and their softmax."""
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    shares = [weight / sum(weights) for weight in weights]
    return sum(score * share for score, share in enumerate(shares)), shares


def score_tokens(encode: Callable[[str], Sequence[int]], lead: str = "Score:") -> tuple[str, list[int]]:
    """Where a tokenizer puts the five numbers.

    Args:
        encode: text to ids, without marks of begin and end.
        lead: what stands before the number.

    Returns:
        The text to end the prompt with ("Score:" or "Score: ") and the id of each number's token right after it.

    Raises:
        UserError: the numbers are not one token each after a common beginning.
    """
    whole = [list(encode(f"{lead} {digit}")) for digit in DIGITS]
    length = 0
    while all(len(ids) > length and ids[length] == whole[0][length] for ids in whole):
        length += 1
    if all(len(ids) == length + 1 for ids in whole):
        for text in (lead, lead + " "):
            if list(encode(text)) == whole[0][:length]:
                return text, [ids[length] for ids in whole]
    raise UserError("this model's tokenizer does not write 0 ... 4 as one token each: use mode=sample")


class LocalRater:
    """Asks a local model, one question at a time. See `Rater`.

    Args:
        settings: of the judge.
        device: where the model runs.

    Raises:
        UserError: there is no such model.
    """

    limit: int | None = None

    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        self.settings, self.device = settings, device
        self.directly = settings.mode == "expected"
        self.name = "transformers-expected" if self.directly else "transformers"
        self.made = 0
        self.identity: dict[str, Any] = {
            "back-end": "transformers",
            "mode": settings.mode,
            "dtype": settings.dtype,
            "pictures": f"{SIDE}x{SIDE}",
            **_model_identity(settings),
        }
        if not self.directly:
            self.identity["max_tokens"] = settings.max_tokens
        self._loaded: tuple[Any, Any] | None = None

    def rate(self, asked: Sequence[Asked], done: Callable[[Answer], None]) -> None:
        from tqdm import tqdm

        low = 0
        for each in tqdm(asked, desc=self.name, unit="rating", disable=None, leave=False):
            begun, before = time.monotonic(), self.made
            answer = self._expect(each) if self.directly else self._sample(each)
            low += bool(self.directly and json.loads(answer.raw)["mass"] < LEAST_MASS)
            done(replace(answer, seconds=time.monotonic() - begun, requests=self.made - before))
        if low:
            logger.warning(
                "%s: in %d of %d answers the numbers 0 ... 4 together had a probability below %g: this model does not "
                "answer in the form that is asked for",
                self.name, low, len(asked), LEAST_MASS,
            )  # fmt: skip

    def _sample(self, asked: Asked) -> Answer:
        raw, problem = "", ""
        for attempt in range(self.settings.asks):
            self.made += 1
            raw = self._generate(asked, (asked.seed + attempt) & 0x7FFFFFFF)
            try:
                return Answer(asked.key, parse_score(raw), raw)
            except ValueError as error:
                problem = str(error)
            if asked.temperature == 0:  # it would say the same again
                break
        return Answer(asked.key, None, raw, problem)

    def _expect(self, asked: Asked) -> Answer:
        import torch

        model, processor = self._load()
        tokenizer = getattr(processor, "tokenizer", processor)
        lead, ids = score_tokens(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        inputs = self._inputs(asked.question, lead)
        self.made += 1
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1].double()
        score, shares = expectation(logits[ids].tolist())
        mass = float(logits.softmax(0)[ids].sum())
        return Answer(asked.key, score, json.dumps({"probabilities": shares, "mass": mass}))

    def _generate(self, asked: Asked, seed: int) -> str:
        import torch

        model, processor = self._load()
        inputs = self._inputs(asked.question, "")
        how: dict[str, Any] = {"do_sample": False}
        if asked.temperature > 0:
            how = {"do_sample": True, "temperature": asked.temperature, "top_p": 1.0, "top_k": 0}
        devices = [] if torch.device(self.device).type == "cpu" else [torch.device(self.device)]
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            out = model.generate(**inputs, max_new_tokens=self.settings.max_tokens, **how)
        new = out[:, inputs["input_ids"].shape[1] :]
        return str(processor.batch_decode(new, skip_special_tokens=True)[0])

    def _inputs(self, question: Question, lead: str) -> Any:
        """The model's inputs: the chat in its own template, an answer begun with `lead`."""
        from PIL import Image

        _, processor = self._load()
        images = [
            picture.image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for picture in question.pictures
        ]
        chat = [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}
                    for part in turn.parts
                ],
            }
            for turn in question.turns
        ]
        try:
            text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + lead
        except (ValueError, AttributeError) as error:
            raise UserError(f"{self.settings.model} has no chat template that takes this ({_line(error)})") from error
        begin = getattr(getattr(processor, "tokenizer", None), "bos_token", None)
        marks = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        inputs = processor(text=[text], images=images, return_tensors="pt", **marks)
        return inputs.to(self.device)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor

            from ...bases.quiet import quiet

            name, revision = self.settings.model, self.settings.revision
            dtype: Any = self.settings.dtype
            if dtype == "auto" and torch.device(self.device).type == "cpu":
                dtype = "float32"
            dtype = dtype if dtype == "auto" else getattr(torch, dtype)
            try:
                with quiet():
                    processor = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
                    model = AutoModelForImageTextToText.from_pretrained(
                        name, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
                    )
            except (OSError, ValueError, ImportError, KeyError) as error:
                raise UserError(
                    f"{name} cannot be loaded as a model for pictures and text ({_line(error)}): expected one with "
                    "safetensors weights, a processor that needs no torchvision, and a chat template"
                ) from error
            self._loaded = model.to(self.device).eval(), processor
        return self._loaded


def _model_identity(settings: Settings) -> Mapping[str, Any]:
    """What tells models of one name apart: the hub's commit, or the hash of a folder's weights."""
    folder = Path(settings.model)
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json"))
        if not files:
            raise UserError(f"{folder} holds no model: expected config.json and safetensors weights")
        return {"model": folder.name, "weights": content_hash([[file.name, sha256(file)] for file in files])[:16]}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(settings.model, revision=settings.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no folder or model {settings.model!r} ({_line(error)}): name a folder, or a hub id that is at "
            "hand"
        ) from error
    return {"model": settings.model, "revision": getattr(config, "_commit_hash", None) or settings.revision}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
