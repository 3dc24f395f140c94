"""`thisness learn` of several subjects at once: packed, or jointly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from thisness.cli.options import program
from thisness.errors import UserError, raise_all
from thisness.sources import noun_in


def nouns_for(folders: Sequence[Path], nouns: Sequence[str], method: str) -> list[str]:
    """A noun for each folder: one for all, one for each in their order, or what the folders themselves say.

    Raises:
        UserError: another number of nouns, or folders that say nothing: all of them listed.
    """
    if nouns and len(nouns) not in (1, len(folders)):
        raise UserError(f"{len(nouns)} nouns (--noun) for {len(folders)} folders: give one for all, or one for each")
    if nouns and all(nouns):
        return list(nouns) * (len(folders) if len(nouns) == 1 else 1)
    found = [noun_in(folder) for folder in folders]
    silent = [str(folder) for folder, noun in zip(folders, found, strict=True) if not noun]
    if silent:
        where = f" for {', '.join(silent)}" if len(folders) > 1 else ""
        raise UserError(
            f"--noun (what kind of thing it is) is missing{where}: {program()} learn {method} photos/ --noun dog, "
            "or write the word into noun.txt beside the pictures"
        )
    return found


def learn_several(
    method: str,
    folders: Sequence[Path],
    nouns: Sequence[str],
    given: Mapping[str, Any],
    *,
    joint: bool,
    pack: int,
    out: Path | None,
    base: str,
    preset: str | None,
    resume: bool,
    resize_mask: bool,
    device: str,
    dtype: str | None,
) -> None:
    """Learn several subjects and say where their concepts are. Arguments as of `learn`."""
    from thisness.subject import Subject

    if joint and method != "custom-diffusion":
        raise UserError(f"--joint is for custom-diffusion, not {method}: leave it out to learn them side by side")
    subjects, problems = [], []
    for folder, noun in zip(folders, nouns, strict=True):
        try:
            subjects.append(Subject.from_folder(folder, noun=noun, resize_mask=resize_mask))
        except UserError as error:
            problems.append(str(error))
    raise_all(problems, UserError)
    names = [subject.name for subject in subjects]
    place = out or (Path("concepts") / "-".join(names)[:64] if joint else Path("concepts"))

    from thisness.cli.loading import open_base
    from thisness.methods import method_named
    from thisness.methods.custom_diffusion import learn_joint
    from thisness.methods.notes import notes
    from thisness.methods.packed import PACKED, learn_packed
    from thisness.methods.registry import settings_for

    chosen = method_named(method)
    loaded = open_base(base, device, dtype)
    settings = settings_for(chosen, loaded, given, preset)
    refused = len(set(names)) < max(len(names), 2) or not (joint or method in PACKED) or settings.track_collapse
    for subject in () if refused else subjects:
        for note in notes(method, subject, loaded, settings):
            typer.echo(f"note: {subject.name}: {note}", err=True)
    common: dict[str, Any] = {"folder": place, "resume": resume, "progress": True, "preset": preset, **given}
    made = learn_joint(subjects, loaded, **common) if joint else learn_packed(
        method, subjects, loaded, pack=pack, **common
    )  # fmt: skip
    for concept in made:
        typer.echo(f"{concept.name}, a {concept.noun}, learned by {method}: {place / concept.name}")
    if joint:
        words = " beside ".join(f"a {{{name}}}" for name in names)
        concepts = " ".join(f"--concept {name}={place / name}" for name in names)
        typer.echo(f'try: {program()} generate "{words}" {concepts} --base {base}')
    else:
        typer.echo(f'try: {program()} generate "a photo of a {{subject}}" --concept {place / names[0]} --base {base}')
