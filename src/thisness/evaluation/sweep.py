"""One knob turned through its values: what that does to identity and to prompt following, as a curve with pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigurationError, ImageError, nearest, raise_all
from ..recipe import Spec, read_value
from .items import Item, Picture, Scored
from .report.figures import Mark, scatter
from .statistics import Estimate, estimate

if TYPE_CHECKING:
    from PIL import Image

    from ..bases import Base
    from ..concept import Concept
    from ..prompt import Prompt
    from ..sampling import SamplingOptions
    from ..subject import Subject

SAMPLING = ("guidance", "steps", "guidance_rescale", "eta")
LORA_SCALE = "lora_scale"
MAX_VALUES = 24
PROMPTS_SHOWN = 3


class Measure(Protocol):
    """What a metric is here; those of `metrics` and the columns of judges are."""

    name: str
    identity: dict[str, Any]

    def score(self, items: Sequence[Item]) -> list[float | None]: ...


@dataclass(frozen=True)
class Knob:
    """What is turned, and its values in order.

    Args:
        name: "guidance", "steps", "guidance_rescale", "eta", "lora_scale", or "PART.SETTING" of an adjustment or an
            attachment: "tea.alpha".
    """

    name: str
    values: tuple[Any, ...]

    def labels(self) -> list[str]:
        """ "guidance=3" for each value."""
        return [f"{self.name}={value}" for value in self.values]


@dataclass(frozen=True)
class Setting:
    """All that one value of the knob decides."""

    options: SamplingOptions
    adjust: tuple[Spec, ...]
    attach: tuple[Spec, ...]
    concept: Concept | None


@dataclass(frozen=True, eq=False)
class Sweep:
    """What `sweep` found.

    Attributes:
        image: the curve with pictures under it.
        rows: each picture with its values; the recipe is "KNOB=VALUE".
        estimates: for each value of the knob (x, y), with intervals over sentences and seeds.
        made: pictures made now; the others were found.
    """

    image: Image.Image
    rows: tuple[Scored, ...]
    estimates: tuple[tuple[Estimate, Estimate], ...]
    made: int


def parse_knob(text: str) -> Knob:
    """A knob from "guidance=1,2,3" or "tea.alpha=0,0.1".

    Raises:
        ConfigurationError: another form, fewer than two values, one twice, over 24; all of it at once.
    """
    name, equals, rest = text.partition("=")
    name = name.strip().replace("-", "_") if "." not in name else name.strip()
    pieces = [piece.strip() for piece in rest.split(",")]
    if not name or not equals or not all(pieces):
        raise ConfigurationError(f"--over {text!r}: write KNOB=VALUE,VALUE,..., for instance guidance=1,2,3")
    values = tuple(read_value(piece) for piece in pieces)
    problems = []
    if not 2 <= len(values) <= MAX_VALUES:
        problems.append(f"{len(values)} value{'s' * (len(values) != 1)}: 2 to {MAX_VALUES} make a curve")
    problems += [f"{value} stands there twice" for value in dict.fromkeys(values) if values.count(value) > 1]
    raise_all(problems, ConfigurationError, f"--over {text!r}")
    return Knob(name, values)


def settings_of(
    knob: Knob,
    *,
    options: SamplingOptions | None = None,
    adjust: Sequence[Spec] = (),
    attach: Sequence[Spec] = (),
    concept: Concept | None = None,
) -> list[Setting]:
    """What each value of the knob means, checked before anything is made.

    Args:
        knob: what is turned.
        options, adjust, attach, concept: what stays; a part that the knob turns keeps its other settings.

    Raises:
        ConfigurationError: no such knob (with the nearest), or values that it does not take.
    """
    from .. import methods  # noqa: F401  (adjustments register themselves there)
    from ..attention import ATTACHMENTS
    from ..conditioning import ADJUSTMENTS
    from ..generation.parts import build_parts
    from ..sampling import SamplingOptions

    options = options or SamplingOptions()
    part, dot, key = knob.name.partition(".")
    known = [*SAMPLING, LORA_SCALE, *(f"{name}.SETTING" for name in (*ADJUSTMENTS, *ATTACHMENTS))]
    turned: list[Setting] = []
    for value in knob.values:
        setting = Setting(options, tuple(adjust), tuple(attach), concept)
        if knob.name in SAMPLING:
            setting = dataclasses.replace(setting, options=_sampling(options, knob.name, value))
        elif knob.name == LORA_SCALE:
            setting = dataclasses.replace(setting, concept=_scaled(concept, value))
        elif dot and part in ADJUSTMENTS:
            setting = dataclasses.replace(setting, adjust=_with(adjust, part, key.replace("-", "_"), value))
        elif dot and part in ATTACHMENTS:
            setting = dataclasses.replace(setting, attach=_with(attach, part, key.replace("-", "_"), value))
        else:
            raise ConfigurationError(f"no knob {knob.name!r}{nearest(knob.name, known)}: known are {', '.join(known)}")
        build_parts(setting.adjust, "adjustment", ADJUSTMENTS)
        build_parts(setting.attach, "attachment", ATTACHMENTS)
        turned.append(setting)
    return turned


def _sampling(options: SamplingOptions, name: str, value: Any) -> SamplingOptions:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (name == "steps" and not isinstance(value, int)):
        raise ConfigurationError(f"{name}={value} is not a {'whole ' if name == 'steps' else ''}number")
    changed: dict[str, Any] = {name: value if name == "steps" else float(value)}
    return dataclasses.replace(options, **changed)


def _scaled(concept: Concept | None, value: Any) -> Concept:
    """The concept with its low-rank weights times `value`; its words stay."""
    from ..adapters.handler import LORA
    from ..concept import Concept

    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigurationError(f"{LORA_SCALE}={value} is not a number")
    if concept is None or LORA not in concept.tensors:
        raise ConfigurationError(f"{LORA_SCALE} scales what a low-rank concept learned: give one with --concept")
    scaled = {
        name: tensor * float(value) if name.endswith(".lora_B.weight") else tensor
        for name, tensor in concept.tensors[LORA].items()
    }
    return Concept(concept.manifest, {**concept.tensors, LORA: scaled})


def _with(parts: Sequence[Spec], name: str, key: str, value: Any) -> tuple[Spec, ...]:
    """The parts with one setting changed, or with the part added."""
    if not any(part.name == name for part in parts):
        return (*parts, Spec.of(name, {key: value}))
    return tuple(Spec.of(name, {**part.values, key: value}) if part.name == name else part for part in parts)


def sweep(
    base: Base,
    prompts: Sequence[str],
    knob: Knob,
    x: Measure,
    y: Measure,
    *,
    subject: Subject,
    folder: str | Path,
    concept: Concept | None = None,
    adjust: Sequence[Spec] = (),
    attach: Sequence[Spec] = (),
    seeds: Sequence[int] = (0, 1, 2, 3),
    options: SamplingOptions | None = None,
    negative: str = "",
    batch_size: int = 4,
    progress: bool = False,
) -> Sweep:
    """Make and measure the same sentences and seeds at every value of a knob.

    Args:
        base: the model.
        prompts: sentences with one placeholder each.
        knob: what is turned.
        x, y: what is measured: prompt following across, identity upwards.
        subject: what the pictures are compared with; its noun is in the sentences that are scored.
        folder: `pictures/` in it keeps every picture under a name that is a hash of all that it was made from.
        concept: what takes the placeholder's place; None: the class noun, by the plain base.
        adjust, attach, options: what stays.
        seeds: of every sentence and value.
        negative: what the pictures should not show.
        batch_size: pictures made at once.
        progress: a bar over the cells.

    Raises:
        UserError: knob, sentences or settings do not fit; before anything is made.
    """
    from tqdm import tqdm

    from .compare import checked_prompts

    sentences = checked_prompts(prompts)
    raise_all([] if seeds else ["no seed: give at least one"], ConfigurationError)
    settings = settings_of(knob, options=options, adjust=adjust, attach=attach, concept=concept)
    cells = [(n, prompt) for n in range(len(settings)) for prompt in sentences]
    store = _Store(base, Path(folder) / "pictures", tuple(seeds), negative, batch_size)
    pictures: list[list[Picture]] = []
    for number, prompt in tqdm(cells, desc="sweep", unit="cell", disable=not progress):
        found = store.pictures(settings[number], prompt, subject.noun)
        pictures.append([Picture(image) for image in found])
    items = _items(knob, cells, sentences, pictures, subject, tuple(seeds))
    values = {measure.name: measure.score(items) for measure in {x.name: x, y.name: y}.values()}
    rows = tuple(
        Scored(
            item.id,
            item.recipe,
            item.subject,
            item.case,
            item.family,
            item.seed,
            item.sentence,
            {name: found[place] for name, found in values.items()},
        )  # fmt: skip
        for place, item in enumerate(items)
    )
    estimates = tuple((_estimate(rows, label, x.name), _estimate(rows, label, y.name)) for label in knob.labels())
    drawn = _draw(knob, estimates, x.name, y.name, cells, sentences, pictures, subject, tuple(seeds))
    return Sweep(drawn, rows, estimates, store.made)


def _estimate(rows: Sequence[Scored], label: str, metric: str) -> Estimate:
    """Over sentences and seeds: there is one subject only, so that this says nothing about others."""
    return estimate([row for row in rows if row.recipe == label], metric, unit=lambda row: f"{row.case}/{row.seed}")


class _Store:
    """Pictures by all that they were made from."""

    def __init__(self, base: Base, folder: Path, seeds: tuple[int, ...], negative: str, batch_size: int) -> None:
        self.base, self.folder, self.seeds = base, folder, seeds
        self.negative, self.batch_size, self.made = negative, batch_size, 0

    def pictures(self, setting: Setting, prompt: Prompt, noun: str) -> list[Image.Image]:
        """One for each seed: found, or made together (the last bits depend on the batch)."""
        from ..generation import generate
        from ..images import load_image, save_png
        from .compare import sentence_for

        names = self._names(setting, prompt, noun)
        try:
            return [load_image(self.folder / name) for name in names]
        except ImageError:  # one is not there yet, or was damaged
            pass
        result = generate(
            self.base,
            prompt if setting.concept is not None else sentence_for(prompt, noun),
            concept=setting.concept,
            adjust=setting.adjust,
            interventions=setting.attach,
            seeds=self.seeds,
            negative=self.negative,
            options=setting.options,
            batch_size=self.batch_size,
        )
        for index, (name, image) in enumerate(zip(names, result.images, strict=True)):
            save_png(image, self.folder / name, {**result.record, "index": index})
        self.made += len(names)
        return result.images

    def _names(self, setting: Setting, prompt: Prompt, noun: str) -> list[str]:
        from ..generation.record import machine

        content = {
            "base": self.base.signature,
            "machine": machine(self.base),
            "concept": setting.concept.hash if setting.concept is not None else noun,
            "prompt": prompt.text,
            "negative": self.negative,
            "options": dataclasses.asdict(setting.options.resolved(self.base)),
            "parts": [[str(part) for part in parts] for parts in (setting.adjust, setting.attach)],
            "seeds": self.seeds,
            "batch": self.batch_size,
        }
        whole = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
        return [f"{whole}-{index:03d}.png" for index in range(len(self.seeds))]


def _items(
    knob: Knob,
    cells: Sequence[tuple[int, Prompt]],
    prompts: Sequence[Prompt],
    pictures: Sequence[Sequence[Picture]],
    subject: Subject,
    seeds: tuple[int, ...],
) -> list[Item]:
    from .benchmarks.sentences import context_of
    from .compare import sentence_for

    references = tuple(Picture(image, mask) for image, mask in zip(subject.images, subject.masks, strict=True))
    labels = knob.labels()
    return [
        Item(
            id=f"{number}-{prompts.index(prompt)}-{seed}",
            recipe=labels[number],
            subject=subject.name,
            case=f"sentence-{prompts.index(prompt)}",
            seed=seed,
            picture=picture,
            references=references,
            noun=subject.noun,
            sentence=sentence_for(prompt, subject.noun),
            concept=f"a {subject.noun}",
            context=context_of(prompt.text),
        )
        for (number, prompt), found in zip(cells, pictures, strict=True)
        for seed, picture in zip(seeds, found, strict=True)
    ]


def _draw(
    knob: Knob,
    estimates: Sequence[tuple[Estimate, Estimate]],
    x: str,
    y: str,
    cells: Sequence[tuple[int, Prompt]],
    prompts: Sequence[Prompt],
    pictures: Sequence[Sequence[Picture]],
    subject: Subject,
    seeds: tuple[int, ...],
) -> Image.Image:
    """The curve over a strip of pictures: a column for each value, the first seed of the first sentences."""
    from PIL import Image

    from ..images import Tile, sheet

    labels = knob.labels()
    marks = [Mark(label, *found) for label, found in zip(labels, estimates, strict=True)]
    curve = scatter(marks, f"prompt following: {x}", f"identity: {y}", path=True).image(scale=1)
    by_cell = {(number, prompt.text): found[0].image for (number, prompt), found in zip(cells, pictures, strict=True)}
    shown = prompts[:PROMPTS_SHOWN]
    strip = sheet(
        [
            [Tile(by_cell[number, prompt.text], f"{number + 1}: {label}") for number, label in enumerate(labels)]
            for prompt in shown
        ],
        references=subject.images[:4],
        title=f"{subject.name}, seed {seeds[0]}. The bars: 95 % intervals over {len(prompts)} x {len(seeds)} pictures",
        row_labels=[prompt.text for prompt in shown],
        tile=112,
    )
    page = Image.new("RGB", (max(curve.width, strip.width), curve.height + strip.height), "white")
    page.paste(curve, (0, 0))
    page.paste(strip, (0, curve.height))
    return page


def described(result: Sweep, knob: Knob, x: Measure, y: Measure, command: str = "") -> dict[str, Any]:
    """All numbers as JSON data."""

    def told(found: Estimate) -> Mapping[str, Any]:
        return dataclasses.asdict(found)

    return {
        "format": "thisness-sweep",
        "version": 1,
        "knob": knob.name,
        "values": list(knob.values),
        "axes": {"x": x.name, "y": y.name},
        "metrics": {x.name: x.identity, y.name: y.identity},
        "command": command,
        "curve": [
            {"value": value, "x": told(across), "y": told(up)}
            for value, (across, up) in zip(knob.values, result.estimates, strict=True)
        ],
        "rows": [
            {"recipe": row.recipe, "case": row.case, "sentence": row.sentence, "seed": row.seed,
             "values": dict(row.values)}
            for row in result.rows
        ],
    }  # fmt: skip
