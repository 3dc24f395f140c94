"""What a metric measures: identity, prompt following, or something else; and which way is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PROMPT = ("clip-t", "siglip-t")
IDENTITY = ("dino-i", "dinov2-i", "m-dino-i", "clip-i", "m-clip-i", "patches", "dino-sub", "clip-sub", "identity")
JUDGED = {"follow": "prompt", "pf": "prompt", "prompt": "prompt", "identity": "identity", "cp": "identity"}


def kind_of(metric: str, identity: Mapping[str, Any]) -> str:
    """ "identity", "prompt" or "".

    Args:
        metric: its name: "dino-i", "tea/clip-t", "oracle:follow".
        identity: what is stored with its values; the metric that it names decides over the column's own name.
    """
    for name in (str(identity.get("metric", "")), metric.partition(":")[0].rpartition("/")[2].lower()):
        if name.startswith(PROMPT):
            return "prompt"
        if name.startswith(IDENTITY):
            return "identity"
    return JUDGED.get(metric.rpartition(":")[2].lower(), "")


def direction(identity: Mapping[str, Any]) -> int:
    """-1 where the lower value is the better one, else 1."""
    return -1 if identity.get("better") == "lower" else 1


def axis(kind: str, metrics: Sequence[str], identities: Mapping[str, Mapping[str, Any]]) -> str:
    """The first metric of a kind; for identity one by DINO (or what stands for it) if there is one, as CLIP's hardly
    tells things of one class apart. Without any: the first that is not of the other kind, else the first.
    """
    kinds = {metric: kind_of(metric, identities.get(metric, {})) for metric in metrics}
    fitting = [metric for metric in metrics if kinds[metric] == kind]
    if kind == "identity":
        fitting.sort(key=lambda metric: "dino" not in metric)
    other = "identity" if kind == "prompt" else "prompt"
    return (fitting or [metric for metric in metrics if kinds[metric] != other] or list(metrics))[0]
