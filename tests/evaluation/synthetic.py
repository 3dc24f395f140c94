"""A run that never ran: rows of chosen numbers and plain pictures, for tests of what is said about runs."""

from types import SimpleNamespace

from PIL import Image

from thisness.evaluation.items import Scored

HOSTILE = "a dog <script>alert('x')</script> | \"quoted\" & `code` ![](http://evil/x.png)\n\n# heading \u202eback\x07"
IDENTITIES = {
    "clip-t": {"metric": "clip-t", "encoder": {"model": "<b>model</b>"}, "better": "higher"},
    "clip-i": {"metric": "clip-i"},
    "dino-i": {"metric": "dino-i", "pooling": "cls"},
    "copy": {"metric": "copy-background", "better": "lower"},
}


def row(recipe, subject, case, seed, values, *, image=None, failure="", family="pose", sentence="a dog sleeping"):
    name = f"{recipe}-{subject}-{case}-{seed}"
    return Scored(name, recipe, subject, case, family, seed, sentence, values, image, failure, 0.5 if image else 0.0)


def picture(path, color="red", side=24):
    Image.new("RGB", (side, side), color).save(path)
    return path


def run(folder, values, *, sentence="a dog sleeping", missing=(), failed=None, labels=None, **more):
    """values: {recipe: {subject: (clip-t, dino-i)}}, two families of one case, two seeds each.

    missing: (recipe, subject) pairs whose pictures have no dino-i. failed: {(recipe, subject): why}.
    """
    failed = failed or {}
    rows, references = [], {}
    for number, (recipe, subjects) in enumerate(values.items()):
        for subject, (follow, same) in subjects.items():
            references.setdefault(subject, (picture(folder / f"ref-{subject}.png", "blue"),))
            for family in ("pose", "background"):
                for seed in (0, 1):
                    about = (recipe, subject, f"{family}-case", seed)
                    if reason := failed.get((recipe, subject)):
                        rows.append(row(*about, {}, failure=reason, family=family, sentence=sentence))
                        continue
                    image = picture(folder / f"{number}-{subject}-{family}-{seed}.png", (40 * number, 100, 100))
                    found = {"clip-t": follow + 0.01 * seed, "clip-i": 0.5, "dino-i": same - 0.01 * seed, "copy": same}
                    if (recipe, subject) in missing:
                        found["dino-i"] = None
                    rows.append(row(*about, found, image=image, family=family, sentence=sentence))
    facts = {
        "benchmark": {"name": "toys", "subjects": {name: {} for name in references}},
        "recipes": {recipe: {"text": recipe} for recipe in values},
        "base": {"name": "tiny"},
        "scored": tuple(rows),
        "identities": IDENTITIES,
        "environment": {"torch": "2.13.0"},
        "command": "thisness bench run toys --recipes 'a,b' --out runs/<x>",
        "references": references,
        "learning": {},
        "sizes": {},
        "planned": len(rows),
        "damaged": 0,
    }
    return SimpleNamespace(**facts | more)


def subjects(count, follow, same):
    return {f"toy-{n}": (follow, same + 0.001 * n) for n in range(count)}
