"""Sentences that stand beside the pictures in training."""

from __future__ import annotations

from collections.abc import Sequence

from ..bases import Base
from ..errors import PromptError
from ..prompt import Prompt, SlotWord

PLAIN = ("a photo of a {subject}",)
BARE = ("photo of a {subject}",)
"""As Custom Diffusion and DETEX write it."""
OBJECT = (
    "a photo of a {subject}", "a rendering of a {subject}", "a cropped photo of the {subject}",
    "the photo of a {subject}", "a photo of a clean {subject}", "a photo of a dirty {subject}",
    "a dark photo of the {subject}", "a photo of my {subject}", "a photo of the cool {subject}",
    "a close-up photo of a {subject}", "a bright photo of the {subject}", "a cropped photo of a {subject}",
    "a photo of the {subject}", "a good photo of the {subject}", "a photo of one {subject}",
    "a close-up photo of the {subject}", "a rendition of the {subject}", "a photo of the clean {subject}",
    "a rendition of a {subject}", "a photo of a nice {subject}", "a good photo of a {subject}",
    "a photo of the nice {subject}", "a photo of the small {subject}", "a photo of the weird {subject}",
    "a photo of the large {subject}", "a photo of a cool {subject}", "a photo of a small {subject}",
)  # fmt: skip
"""The 27 sentences for objects of Gal et al., An Image is Worth One Word (2022), from CLIP's ImageNet templates."""
SETS = {"plain": PLAIN, "object": OBJECT, "bare": BARE}


def class_set(captions: str) -> tuple[str, ...]:
    """The set for pictures of the class, beside one for those of the subject."""
    return BARE if captions == "bare" else PLAIN


def sentences(base: Base, templates: Sequence[str], word: SlotWord) -> list[str]:
    """Templates with a word put in, without those whose words the base's tokenizer breaks into letters.

    A tokenizer that was made for one small world knows few words; a sentence that it must spell out teaches nothing.

    Args:
        base: whose (first) tokenizer.
        templates: sentences with {subject}.
        word: what takes its place.

    Returns:
        At least one sentence.

    Raises:
        PromptError: a template without {subject}; or the base can read none of them.
    """
    readable = []
    for template in templates:
        prompt = Prompt(template)
        if prompt.slots != ("subject",):
            raise PromptError(f"the caption {template!r} must have {{subject}} where the subject goes, and no other")
        others = [piece.strip(".,") for piece in prompt.text.split() if "{" not in piece]
        tokenizer = base.tokenizer
        if all(len(tokenizer(piece, add_special_tokens=False)["input_ids"]) <= 3 for piece in others):
            readable.append(prompt.fill({"subject": word}).text)
    if not readable:
        raise PromptError(f"{base.name} knows the words of none of the captions ({templates[0]!r} ...): give others")
    return readable
