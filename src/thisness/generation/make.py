"""Pictures from a sentence: the one way in which the command line, previews and benchmarks make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image

from ..attention import ATTACHMENTS, Intervention
from ..bases import Base
from ..concept import Attached, Concept
from ..conditioning import (
    ADJUSTMENTS,
    Adjustment,
    Conditioning,
    Sentence,
    SentenceAdjustment,
    SentenceAttachment,
    encode_adjusted,
    encode_negative,
)
from ..errors import ConfigurationError, raise_all
from ..keeping import Keep, kept
from ..prompt import Prompt
from ..recipe import Spec
from ..sampling import SamplingOptions, Step, decode_images, make_scheduler, sample
from ..subject import Subject
from .parts import build_parts, describe_parts
from .record import MAX_BATCH, make_record
from .result import Generation
from .words import as_read, by_slot, slot_words


@torch.no_grad()
def generate(
    base: Base,
    prompt: str | Prompt,
    *,
    subject: Subject | Mapping[str, Subject] | None = None,
    concept: Concept | Mapping[str, Concept] | None = None,
    keep: Sequence[Keep | str] = (),
    adjust: Sequence[Adjustment | SentenceAdjustment | Spec | str] | str = (),
    interventions: Sequence[Intervention | SentenceAttachment | Spec | str] = (),
    seeds: Sequence[int] = (0,),
    negative: str = "",
    options: SamplingOptions | None = None,
    batch_size: int = 4,
    progress: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Generation:
    """Make pictures, one for each seed.

    A placeholder becomes the concept's learned word; without a concept the subject's noun. The sentence is encoded
    once.

    Each seed has its own generator on the CPU, so that its noise is the same on every device, alone and in a batch.
    The arithmetic is not quite: rows of another batch size are summed in another order. On the CPU in float32, over 30
    steps with guidance, a seed's picture alone and in a batch of 2, 4 or 8 differs by 1 of 255 levels in fewer than 1
    of 10,000 values (measured on a trained model; the test allows 1 level in 1 of 1,000). The same seeds with the same
    `batch_size` give the same bits on the same versions, device and number of threads.

    Args:
        base: the model.
        prompt: "a {subject} sleeping"; several placeholders need mappings for `subject` or `concept`.
        subject: gives the noun, and the references on the sheet.
        concept: what was learned; on the base for the length of the call.
        keep: what to keep of the pictures that a concept was learned of, where its method can: "pose:2" (pictures
            count from 0), "rex=background:0". The words for it become part of the prompt.
        adjust: changes of the conditioning of the sentence, in this order: "tea:alpha=0.3".
        interventions: attached to the denoiser, in this order. One that records is overwritten by each batch.
        seeds: 0 ... 2**63-1 each.
        negative: what the pictures should not show; acts under guidance only.
        options: how; what the base is used with where None.
        batch_size: pictures made at once, 1 to 1024.
        progress: a bar on stderr.
        on_step: called after each step of each batch; what it raises ends the run.

    Returns:
        Pictures in the order of the seeds, and their record.

    Raises:
        UserError: prompt, names, numbers or the concept do not fit; before anything is computed.
        ThisnessError: latents or pictures are not finite.
    """
    seeds = [int(seed) for seed in seeds]
    wrong = [] if seeds else ["seeds are empty: give at least one"]
    wrong += [f"seed {seed} is not in 0 ... 2**63-1" for seed in seeds if not 0 <= seed < 2**63]
    wrong += [] if 1 <= batch_size <= MAX_BATCH else [f"batch_size {batch_size} is not in 1 ... {MAX_BATCH}"]
    raise_all(wrong, ConfigurationError)
    prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
    concepts, subjects = by_slot(prompt, concept), by_slot(prompt, subject)
    prompt, negative = as_read(kept(prompt, concepts, keep), concepts, negative, base)
    filled = prompt.fill(slot_words(prompt, concepts, subjects))
    adjustments = build_parts([adjust] if isinstance(adjust, str) else adjust, "adjustment", ADJUSTMENTS)
    attachments = build_parts(interventions, "attachment", ATTACHMENTS)
    options = (options or SamplingOptions()).resolved(base)
    batches = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    images = []
    with ExitStack() as stack:
        once = {id(each): stack.enter_context(each.attach(base)) for each in _distinct(concepts)}
        brought = _together({slot: once[id(each)] or Attached() for slot, each in concepts.items()}, base)
        making = _way(brought, concepts)
        own = [part for each in _distinct(brought) for part in each.interventions]
        unwanted = encode_negative(base, negative) if base.branches(options.guidance) else None

        def preview(conditioning: Conditioning, seeds: Sequence[int], steps: int) -> list[Image]:
            few = replace(options, steps=min(steps, options.steps or steps))
            return decode_images(base, making(base, conditioning, unwanted, seeds, few, interventions=own))

        references = tuple(image for each in subjects.values() for image in each.images)
        sentence = Sentence(base, filled, concepts, references, preview, brought)
        conditioning, adjustments, reports = encode_adjusted(sentence, adjustments)
        bound = [e.bound(sentence) if isinstance(e, SentenceAttachment) else e for e in attachments]
        attending = [*own, *bound]
        told = stack.enter_context(_progress(len(batches))) if progress else None

        def after(step: Step) -> None:
            for listener in (told, on_step):
                if listener is not None:
                    listener(step)

        listening = after if told or on_step else None
        if hasattr(making, "clear"):
            making.clear()  # of what previews left
        for batch in batches:
            latents = making(base, conditioning, unwanted, batch, options, interventions=attending, on_step=listening)
            images += decode_images(base, latents)
    reports += [each.report for each in (*attending, making) if hasattr(each, "report")]
    said_adjustments, unsaid_adjustments = describe_parts(adjustments, ADJUSTMENTS)
    said_attachments, unsaid_attachments = describe_parts(attachments, ATTACHMENTS)
    record = make_record(
        base=base,
        prompt=filled,
        negative=negative,
        concepts=concepts,
        subjects=subjects,
        adjustments=said_adjustments,
        attachments=said_attachments,
        unsaid=[*unsaid_adjustments, *unsaid_attachments],
        options=options,
        scheduler=make_scheduler(base, options.scheduler, options.height, options.width),
        batches=batches,
        images=images,
        reports=reports,
    )
    return Generation(images, record, references, stages=tuple(getattr(making, "stages", ())))


def _distinct(by_slot: Mapping[str, Any]) -> list[Any]:
    return list({id(each): each for each in by_slot.values()}.values())


def _together(brought: Mapping[str, Attached], base: Base) -> dict[str, Attached]:
    """By placeholder; several concepts that know how share what they bring together."""
    found = dict(brought)
    for how in {each.together for each in brought.values() if each.together is not None}:
        members = {slot: each for slot, each in brought.items() if each.together is how}
        if len(_distinct(members)) > 1:
            found |= dict.fromkeys(members, how(members, base))
    return found


def _way(brought: Mapping[str, Attached], concepts: Mapping[str, Concept]) -> Callable[..., torch.Tensor]:
    """How to sample: as usual, or as the one concept wants it that has a way of its own.

    Raises:
        ConfigurationError: several have.
    """
    ways = {slot: each.sample for slot, each in brought.items() if each.sample is not None}
    if len({id(way) for way in ways.values()}) > 1:
        named = ", ".join(f"{concepts[slot].name!r} ({concepts[slot].method})" for slot in ways)
        raise ConfigurationError(f"{named}: each samples in a way of its own: use one of them in a sentence")
    return next(iter(ways.values()), None) or sample


@contextmanager
def _progress(batches: int) -> Iterator[Callable[[Step], None]]:
    """A bar over the steps of all batches; its length is known after the first step."""
    from tqdm import tqdm

    bar: Any = tqdm(desc="generate", unit="step", dynamic_ncols=True)

    def told(step: Step) -> None:
        if bar.total is None:
            bar.total = batches * step.count
        bar.update()

    try:
        yield told
    finally:
        bar.close()
