"""Side by side: the same sentences and seeds by concepts, recipes, and the plain base, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, PromptError, raise_all
from ..prompt import Prompt, SlotWord

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from ..bases import Base
    from ..sampling import SamplingOptions
    from ..subject import Subject
    from .recipes import NamedRecipe

MAX_PICTURES = 2000


@dataclass(frozen=True, eq=False)
class Column:
    """One way to make the pictures.

    Args:
        label: written under them.
        concept: what takes the placeholder's place; None for the plain base.
        noun: what takes it on the plain base: the class noun.
        given: further keywords of `generate`: adjust, interventions, subject.
        options: how its pictures are sampled; None for those of the whole comparison.
    """

    label: str
    concept: Any = None
    noun: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    options: SamplingOptions | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` made.

    Attributes:
        image: the labelled sheet: a row for each sentence and seed, a column for each column.
        pictures: [row][column].
        record: JSON data: for each column and sentence the record that replays its pictures.
    """

    image: Image.Image
    pictures: list[list[Image.Image]]
    record: dict[str, Any]


def checked_prompts(texts: Sequence[str]) -> list[Prompt]:
    """Sentences with one placeholder each.

    Raises:
        PromptError: none, several, or another form; all of it at once.
    """
    problems, prompts = [] if texts else ["no sentence: write at least one"], []
    for text in texts:
        try:
            prompt = Prompt(text)
        except PromptError as error:
            problems.append(str(error))
            continue
        prompts.append(prompt)
        if len(prompt.slots) != 1:
            found = f"has {len(prompt.slots)} placeholders" if prompt.slots else "has no placeholder"
            problems.append(f"the prompt {prompt.text[:200]!r} {found}: write {{subject}} where the subject goes")
    raise_all(problems, PromptError)
    return prompts


def sentence_for(prompt: Prompt, noun: str) -> str:
    """The sentence with the class noun in its place."""
    return prompt.fill({prompt.slots[0]: SlotWord(noun, noun)}).text


def recipe_column(
    named: NamedRecipe,
    base: Base,
    subject: Subject,
    folder: Path,
    options: SamplingOptions | None = None,
) -> Column:
    """A column of a recipe: what it learns is kept in a folder, so that the next call finds it.

    Args:
        named: a resolved recipe.
        base: the model.
        subject: what is learned.
        folder: for what is learned; where it holds the same already, nothing is learned.
        options: of the sampler; settings of the recipe win.

    Raises:
        UserError: settings that do not fit; the folder holds something else.
        Stopped: by a signal; the same call goes on.
    """
    from dataclasses import asdict

    from ..concept import Concept
    from ..sampling import SamplingOptions
    from .learning import way_of

    way, recipe = way_of(named), named.recipe
    settings = {**(asdict(options) if options is not None else {}), **recipe.sampling.values}
    given: dict[str, Any] = {"adjust": recipe.adjustments, "interventions": recipe.attachments}
    if recipe.method is None:
        return Column(named.label, None, subject.noun, given, SamplingOptions(**settings))
    if way.prepares:
        way.prepare(subject, base, folder, None)
    keywords = way.keywords(base, {"subject": subject}, lambda name: Concept.load(folder, base))
    concept = keywords.pop("concept", {}).get("subject")
    return Column(named.label, concept, subject.noun, {**given, **keywords}, SamplingOptions(**settings))


def compare(
    base: Base,
    columns: Sequence[Column],
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    options: SamplingOptions | None = None,
    negative: str = "",
    batch_size: int = 4,
    references: Sequence[Image.Image] = (),
    title: str = "",
    tile: int = 192,
    progress: bool = False,
) -> Comparison:
    """The same sentences and seeds by every column, as one labelled picture.

    Args:
        base: the model.
        columns: with different labels.
        prompts: sentences with one placeholder each.
        seeds: of every sentence and column.
        options: how; a column's own win.
        negative: what the pictures should not show.
        batch_size: pictures made at once.
        references: the subject's pictures, shown at the left.
        title: over everything.
        tile: side of a picture on the sheet, in pixels.
        progress: a bar over the cells.

    Raises:
        UserError: sentences, columns or seeds do not fit; before anything is made.
    """
    from tqdm import tqdm

    from ..generation import generate
    from ..images import Tile, sheet

    sentences = checked_prompts(prompts)
    _check(columns, sentences, seeds)
    cells = [(prompt, column) for prompt in sentences for column in columns]
    made: dict[tuple[str, str], Any] = {}
    for prompt, column in tqdm(cells, desc="compare", unit="cell", disable=not progress):
        plain = column.concept is None and "subject" not in column.given
        made[prompt.text, column.label] = generate(
            base,
            sentence_for(prompt, column.noun) if plain else prompt,
            concept=column.concept,
            seeds=seeds,
            negative=negative,
            options=column.options or options,
            batch_size=batch_size,
            **_for_slot(column.given),
        )
    rows = [(prompt, number) for prompt in sentences for number in range(len(seeds))]
    pictures = [[made[prompt.text, column.label].images[number] for column in columns] for prompt, number in rows]
    drawn = sheet(
        [[Tile(i, column.label) for i, column in zip(row, columns, strict=True)] for row in pictures],
        references=references,
        title=title,
        row_labels=[f"{prompt.text}, seed {seeds[number]}" for prompt, number in rows],
        tile=tile,
    )
    record = {
        "format": "thisness-comparison",
        "version": 1,
        "columns": [column.label for column in columns],
        "prompts": [prompt.text for prompt in sentences],
        "seeds": list(seeds),
        "records": [
            {"column": column.label, "prompt": prompt.text, "record": made[prompt.text, column.label].record}
            for prompt, column in cells
        ],
    }
    return Comparison(drawn, pictures, record)


def _check(columns: Sequence[Column], prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
    labels = [column.label for column in columns]
    doubled = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    problems = [f"two columns are called {label!r}: write LABEL=... before one of them" for label in doubled]
    problems += [] if columns else ["no column: name a concept, a recipe, or the plain base"]
    problems += [] if seeds else ["no seed: give at least one"]
    problems += [
        f"column {column.label!r}: the plain base needs the class noun"
        for column in columns
        if column.concept is None and not column.noun and "subject" not in column.given
    ]
    texts = [prompt.text for prompt in prompts]
    problems += [f"the sentence {text!r} stands there twice" for text in dict.fromkeys(texts) if texts.count(text) > 1]
    if (count := len(columns) * len(prompts) * len(seeds)) > MAX_PICTURES:
        problems.append(f"{count} pictures are more than a sheet can show ({MAX_PICTURES}): fewer seeds or sentences")
    raise_all(problems, ConfigurationError)


def _for_slot(given: Mapping[str, Any]) -> dict[str, Any]:
    """A column's subject as a single one, so that it goes to the sentence's placeholder, whatever that is called."""
    subject = given.get("subject")
    return {**given, "subject": next(iter(subject.values()))} if isinstance(subject, Mapping) else dict(given)
