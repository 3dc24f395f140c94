"""Recipes by name, as a benchmark is asked for them.

    [LABEL=]METHOD[:key=value,...][+PART[:key=value,...]]...

    base                                        the plain base with the class noun, nothing learned
    dreambooth-lora                             a method with the preset for the base's size
    long=dreambooth-lora:steps=800,preset=small its settings; the key "preset" names a preset
    dreambooth-lora+tea:alpha=0.2               an adjustment or an attachment
    textual-inversion+harmonizing:preset=robust several that go together: orchestrate and attention-swap
    base+sampling:steps=10,guidance=3           settings of the sampler

What stands before the first "=" is a label if no ":" and no "+" come before it. A "+" begins a part if a letter follows
it and it is not inside of quotes. In a list, a comma begins a new recipe unless what follows it is a setting
(key=value) of a part that has a colon; after such a part write a labelled recipe behind ";".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError, ThisnessError, nearest, raise_all
from ..files import checked_name, safe_name
from ..recipe import Recipe, Spec, parse_spec, validate

BASE = "base"
PRESET = "preset"
SAMPLING = "sampling"
_OUTSIDE = r'(?=(?:[^"]*"[^"]*")*[^"]*$)'  # of quotes
_PLUS = re.compile(r"\+(?=[a-z])" + _OUTSIDE)
_SEMICOLON = re.compile(r"[;\n]" + _OUTSIDE)
_COMMA = re.compile("," + _OUTSIDE)
_LABEL = re.compile(r"\s*([^:+=]*?)\s*=(.*)", re.DOTALL)
_SETTING = re.compile(r"\s*[a-z][a-z0-9_-]*\s*=")


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe under the name that tables and folders give it.

    Args:
        label: [a-z0-9][a-z0-9-]*, unique in a run.
        text: as it was written, without its label.
        recipe: what it says; parts of unknown kind are sorted into adjustments and attachments by `resolved`.
        preset: of the method's settings; None for the one of the base's size.
    """

    label: str
    text: str
    recipe: Recipe
    preset: str | None = None


def split_recipes(texts: Sequence[str]) -> list[str]:
    """Single recipes from lists of them: ["base,tea:alpha=0.2,beta=1;long=detex"] -> base, tea:alpha=0.2,beta=1, ..."""
    found: list[str] = []
    for text in texts:
        for group in _SEMICOLON.split(text):
            pieces: list[str] = []
            for piece in _COMMA.split(group):
                goes_on = bool(pieces) and ":" in _PLUS.split(pieces[-1])[-1] and _SETTING.match(piece)
                if goes_on:
                    pieces[-1] += "," + piece
                else:
                    pieces.append(piece)
            found += [piece.strip() for piece in pieces if piece.strip()]
    return found


def parse_recipes(texts: Sequence[str]) -> tuple[NamedRecipe, ...]:
    """Recipes from what was typed; whether methods and parts exist is checked by `resolved`.

    Raises:
        ConfigurationError: of another form, none at all, or two of one label; all of it at once.
    """
    problems: list[str] = []
    recipes: list[NamedRecipe] = []
    for text in split_recipes(texts):
        try:
            recipes.append(parse_recipe(text))
        except ThisnessError as error:
            problems.append(str(error))
    labels = [each.label for each in recipes]
    problems += [
        f"two recipes are called {label!r}: put LABEL= before one of them"
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]
    if not recipes and not problems:
        problems.append("no recipe: name at least one, for instance base,dreambooth-lora")
    raise_all(problems)
    return tuple(recipes)


def parse_recipe(text: str) -> NamedRecipe:
    """One recipe.

    Raises:
        ConfigurationError: of another form.
    """
    label, rest = "", text.strip()
    if match := _LABEL.fullmatch(rest):
        label, rest = match[1], match[2].strip()
        checked_name(label, "the recipe's label")
    first, *more = _PLUS.split(rest)
    method = parse_spec(first, "recipe")
    parts = [parse_spec(part, "part") for part in more]
    settings = method.values
    preset = settings.pop(PRESET, None)
    problems = []
    if preset is not None and not isinstance(preset, str):
        problems.append(f"recipe {rest!r}: preset must be a name")
    if method.name == BASE and method.settings:
        problems.append(f"recipe {rest!r}: base learns nothing, so it has no settings; write base+sampling:steps=...")
    sampling = [part for part in parts if part.name == SAMPLING]
    if len(sampling) > 1:
        problems.append(f"recipe {rest!r}: sampling stands there twice")
    raise_all(problems)
    recipe = Recipe(
        method=None if method.name == BASE else Spec.of(method.name, settings),
        adjustments=tuple(part for part in parts if part.name != SAMPLING),
        sampling=sampling[0] if sampling else Spec(SAMPLING),
    )
    return NamedRecipe(label or safe_name(rest, "recipe"), rest, recipe, preset if isinstance(preset, str) else None)


def resolved(named: NamedRecipe, sampling: Mapping[str, Any] | None = None) -> NamedRecipe:
    """The same with each part as what it is, checked against what exists.

    Args:
        named: as it was parsed.
        sampling: settings of the sampler for all recipes; a recipe's own win.

    Raises:
        ConfigurationError: unknown names and settings, with the nearest valid ones; all of it at once.
    """
    from dataclasses import replace

    from ..generation.parts import COMBINED, KNOWN, combined
    from ..methods import METHODS

    problems = []
    given = named.recipe.adjustments + named.recipe.attachments
    if named.recipe.method is not None and named.recipe.method.name not in METHODS:
        name, known = named.recipe.method.name, [BASE, *METHODS]
        problems.append(f"no method {name!r}{nearest(name, known)}: known are {', '.join(known)}")
    for part in given:
        known = [*KNOWN.adjustments, *KNOWN.attachments, *COMBINED, SAMPLING]
        if part.name not in known:
            problems.append(f"no adjustment or attachment {part.name!r}{nearest(part.name, known)}: {', '.join(known)}")
    raise_all(problems, lead=f"recipe {named.text!r}")
    try:
        alone = [(part,) if part.name not in COMBINED else sum(combined(part), ()) for part in given]
    except ConfigurationError as error:
        raise ConfigurationError(f"recipe {named.text!r}: {error}") from None
    given = tuple(part for parts in alone for part in parts)
    recipe = Recipe(
        method=named.recipe.method,
        adjustments=tuple(part for part in given if part.name in KNOWN.adjustments),
        attachments=tuple(part for part in given if part.name not in KNOWN.adjustments),
        sampling=Spec.of(SAMPLING, {**(sampling or {}), **named.recipe.sampling.values}),
    )
    parts_only = Recipe(None, recipe.adjustments, recipe.attachments, recipe.sampling)
    try:
        validate(parts_only, KNOWN)  # the method's settings are checked with its preset, by `learning`
    except ConfigurationError as error:
        raise ConfigurationError(f"recipe {named.text!r}: {error}") from None
    return replace(named, recipe=recipe)
