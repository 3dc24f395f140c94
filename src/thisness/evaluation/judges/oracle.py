"""The Playroom's attribute reader as a judge: what a picture shows, read by a network that taught nothing.

Columns: `follow` (share of what the sentence asks for that the reader reads in the picture), `identity` (agreement
of what it reads of the toy with what it reads in the references), `copied-pose` (the pose is a reference's although
another was asked for), `usual-look` (the look of most toys of the class although the references have another), and
one for each attribute (`pose`, `background`, `second-colour`, ...). It reads renders with errors of its own, which its
identity states; docs/judges.md says how high the columns get on real renders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ArtefactError, ConfigurationError, nearest
from ...files import read_json, sha256
from ...playroom.captions import ATTRIBUTES
from ...playroom.world import USUAL_LOOKS
from ..items import Item, Picture
from .column import Column, chosen

if TYPE_CHECKING:
    from ...playroom.models import Reader

WEIGHTS = Path(__file__).parents[2] / "playroom" / "weights" / "judge"
BATCH = 64
DEFAULT = ("follow", "identity", "copied-pose")
USUAL = "usual-look"
UNREAD = ("companion", "companion colour")
"""The reader was never taught these: of two toys a picture does not say which is the subject."""
OF_A_PAIR = ("background", "style")
"""All that it can be asked of a picture with two toys."""
OF_A_TOY = ("class", "colour", "pattern", "second colour")
"""What `identity` compares; the second colour as far as the references' pattern has one."""
SKETCH = "pencil sketch"

Reading = Mapping[str, np.ndarray]  # by attribute: probabilities of its values


def column_name(attribute: str) -> str:
    return attribute.replace(" ", "-")


COLUMNS = (*DEFAULT, USUAL, *(column_name(name) for name in ATTRIBUTES if name not in UNREAD))


@dataclass(frozen=True)
class Settings:
    """columns: of `COLUMNS`; weights: folder of another reader."""

    columns: tuple[str, ...] = DEFAULT
    weights: str | None = None


def make(settings: Settings, context: Any) -> list[Column]:
    """Columns that share one reader.

    Raises:
        ConfigurationError: an unknown column.
        ArtefactError: the reader's weights are not there or are for other attributes.
    """
    columns = chosen(settings.columns, COLUMNS, "oracle")
    reader = OracleReader(Path(settings.weights) if settings.weights else WEIGHTS, context.device)
    return [OracleColumn(reader, name) for name in columns]


class OracleReader:
    """Reads pictures, each once.

    Args:
        folder: the reader's weights; `accuracy.json` beside them says how well it reads renders.
        device: where it runs.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        config = read_json(folder / "config.json")
        if not isinstance(config, dict) or config.get("attributes") != {k: list(v) for k, v in ATTRIBUTES.items()}:
            raise ArtefactError(f"{folder} reads other attributes than the Playroom has: train it anew")
        if not (folder / "model.safetensors").is_file():
            raise ArtefactError(f"{folder / 'model.safetensors'} is not there: expected the reader's weights")
        self.folder, self.device = folder, device
        accuracy = folder / "accuracy.json"
        self.identity: dict[str, Any] = {
            "judge": "oracle",
            "model": f"Playroom reader ({config.get('kind')})",
            "weights": _weights_hash(folder),
            "accuracy": read_json(accuracy) if accuracy.is_file() else "unmeasured",
        }
        self._reader: Reader | None = None
        self._readings: dict[str, Reading] = {}

    def read(self, pictures: Sequence[Picture]) -> list[Reading]:
        """What it reads: for each picture probabilities by attribute."""
        new = {picture.hash: picture for picture in pictures if picture.hash not in self._readings}
        sizes: dict[tuple[int, int], list[Picture]] = {}
        for picture in new.values():
            sizes.setdefault(picture.image.size, []).append(picture)
        for group in sizes.values():
            for start in range(0, len(group), BATCH):
                self._read(group[start : start + BATCH])
        return [self._readings[picture.hash] for picture in pictures]

    def _read(self, pictures: Sequence[Picture]) -> None:
        import torch

        from ...playroom.models import Reader

        if self._reader is None:
            loaded = Reader.load(self.folder).to(self.device)
            if _weights_hash(self.folder) != self.identity["weights"]:
                raise ArtefactError(f"{self.folder} has changed since this judge was made: make it anew")
            self._reader = loaded
        pixels = np.stack([np.asarray(picture.image.convert("RGB")) for picture in pictures])
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        with torch.no_grad():
            read = {name: logits.double().softmax(1).cpu().numpy() for name, logits in self._reader(images).items()}
        for row, picture in enumerate(pictures):
            self._readings[picture.hash] = {name: values[row] for name, values in read.items()}


def _weights_hash(folder: Path) -> str:
    return sha256(folder / "model.safetensors")[:16]


class OracleColumn(Column):
    """One column of the reader's."""

    def __init__(self, reader: OracleReader, column: str) -> None:
        self.reader, self.column = reader, column
        self.name = f"oracle:{column}"
        self._value, measures = _measure(column)
        self.identity = {**reader.identity, "column": column, "measures": measures}

    def score(self, items: Sequence[Item]) -> list[float | None]:
        for item in items:
            _check(item)
        self.reader.read([picture for item in items for picture in (item.picture, *item.references)])
        return [self._value(item, self.reader) for item in items]


def words(reading: Reading, attribute: str) -> str:
    """What is read of an attribute."""
    return ATTRIBUTES[attribute][int(reading[attribute].argmax())]


def readable(item: Item) -> dict[str, str]:
    """What of a sentence's demands the reader can be asked: nothing about a second toy; of a picture with two only
    `OF_A_PAIR`; no colours of a pencil sketch."""
    pair, sketch = _has_two(item), item.expected.get("style") == SKETCH
    return {
        name: value
        for name, value in item.expected.items()
        if name not in UNREAD and not (pair and name not in OF_A_PAIR) and not (sketch and "colour" in name)
    }


def follow(expected: Mapping[str, str], reading: Reading) -> float | None:
    """Share of the expected attributes that are read; None where nothing is expected."""
    if not expected:
        return None
    return sum(words(reading, name) == value for name, value in expected.items()) / len(expected)


def toy_agreement(reading: Reading, reference: Reading, *, colours: bool = True) -> float:
    """How far two pictures show one toy, in [0, 1]: mean over `OF_A_TOY` of the overlap of what is read,
    sum of min(p, q) = 1 - total variation.

    The second colour weighs as much as the reference is read to have a pattern.

    Args:
        colours: False leaves the colours out (of sketches).
    """
    plain = float(reference["pattern"][ATTRIBUTES["pattern"].index("plain")])
    weights = {
        name: 1 - plain if name == "second colour" else 1.0 for name in OF_A_TOY if colours or "colour" not in name
    }
    overlaps = {name: float(np.minimum(reading[name], reference[name]).sum()) for name in weights}
    return sum(weights[name] * overlaps[name] for name in weights) / sum(weights.values())


def copied_pose(asked: str | None, read: str, references: Sequence[str]) -> float | None:
    """1 where the pose is a reference's although another was asked for, else 0; None where no pose was asked for or
    no reference has another."""
    others = set(references) - {asked}
    if asked is None or not others:
        return None
    return float(read in others)


def usual_look(noun: str, own: Mapping[str, str], reading: Reading, *, colours: bool = True) -> float | None:
    """Share of what a toy has otherwise than most of its class that is read as most of its class have it.

    None where it looks as they do.

    Args:
        noun: the class.
        own: the toy's colour, pattern and second colour; the last counts where both patterns have one.
        reading: of the picture.
        colours: False leaves the colours out (of sketches).

    Source: AlignGen's textual bias (2025, figure 2), as a number.
    """
    colour, second, pattern = USUAL_LOOKS[noun]
    usual = {"colour": colour, "pattern": pattern}
    if "plain" not in (pattern, own.get("pattern", "plain")):
        usual["second colour"] = second
    asked = [
        (name, value)
        for name, value in usual.items()
        if name in own and own[name] != value and (colours or "colour" not in name)
    ]
    if not asked:
        return None
    return sum(words(reading, name) == value for name, value in asked) / len(asked)


def _measure(column: str) -> tuple[Callable[[Item, OracleReader], float | None], str]:
    """What a column computes, and that in words for its identity."""
    if column == "follow":
        measure: Callable[[Item, OracleReader], float | None] = lambda item, reader: follow(  # noqa: E731
            readable(item), reader.read([item.picture])[0]
        )
        return measure, "share of the expected attributes that are read"
    if column == "identity":
        return _identity, f"mean over references and {', '.join(OF_A_TOY)} of the overlap of the probabilities"
    if column == "copied-pose":
        return _copied_pose, "1 where the pose read is a reference's and not the one asked for"
    if column == USUAL:
        return _usual_look, "share of what the toy has otherwise than most of its class that is read as theirs"
    attribute = next(name for name in ATTRIBUTES if column_name(name) == column)

    def one(item: Item, reader: OracleReader) -> float | None:
        expected = {name: value for name, value in readable(item).items() if name == attribute}
        return follow(expected, reader.read([item.picture])[0])

    return one, f"1 where the expected {attribute} is read"


def _identity(item: Item, reader: OracleReader) -> float | None:
    if not item.references or _has_two(item):
        return None
    colours = item.expected.get("style") != SKETCH
    reading, *references = reader.read([item.picture, *item.references])
    return sum(toy_agreement(reading, each, colours=colours) for each in references) / len(references)


def _copied_pose(item: Item, reader: OracleReader) -> float | None:
    asked = readable(item).get("pose")
    if asked is None or not item.references:
        return None
    reading, *references = reader.read([item.picture, *item.references])
    known = [truth.get("pose") for truth in item.truths] if len(item.truths) == len(references) else []
    known += [None] * (len(references) - len(known))
    poses = [pose or words(each, "pose") for pose, each in zip(known, references, strict=True)]
    return copied_pose(asked, words(reading, "pose"), poses)


def _usual_look(item: Item, reader: OracleReader) -> float | None:
    if not item.references or _has_two(item) or item.noun not in USUAL_LOOKS:
        return None
    reading, reference = reader.read([item.picture, item.references[0]])
    truth = item.truths[0] if item.truths else {}
    own = {name: truth.get(name) or words(reference, name) for name in ("colour", "pattern", "second colour")}
    return usual_look(item.noun, own, reading, colours=item.expected.get("style") != SKETCH)


def _has_two(item: Item) -> bool:
    return item.expected.get("companion", "none") != "none" or item.family == "two-toy"


def _check(item: Item) -> None:
    """Raises ConfigurationError for demands that are not in the Playroom's words."""
    for name, value in item.expected.items():
        if name not in ATTRIBUTES:
            raise ConfigurationError(
                f"case {item.case} expects {name!r}{nearest(name, ATTRIBUTES)}: the oracle reads "
                f"{', '.join(ATTRIBUTES)}"
            )
        if value not in ATTRIBUTES[name]:
            raise ConfigurationError(
                f"case {item.case} expects {name} {value!r}{nearest(value, ATTRIBUTES[name])}: the oracle knows "
                f"{', '.join(ATTRIBUTES[name])}"
            )
