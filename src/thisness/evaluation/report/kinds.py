"""What a metric measures: identity, prompt following, or something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PROMPT = ("clip-t", "siglip-t")
IDENTITY = ("dino", "clip-i", "m-dino", "m-clip-i", "siglip-i", "patch", "fg-", "identity", "face")
JUDGED = {"follow": "prompt", "pf": "prompt", "prompt": "prompt", "identity": "identity", "cp": "identity"}


def kind_of(metric: str, identity: Mapping[str, Any]) -> str:
    """ "identity", "prompt" or "".

    Args:
        metric: its name.
        identity: what is stored with its values; where it says what it "measures", that decides over the name.
    """
    said = identity.get("measures")
    if isinstance(said, str):
        return said
    name = metric.lower()
    if ":" in name:
        return JUDGED.get(name.rpartition(":")[2], "")
    return "prompt" if name.startswith(PROMPT) else "identity" if name.startswith(IDENTITY) else ""


def axis(kind: str, metrics: Sequence[str], identities: Mapping[str, Mapping[str, Any]]) -> str:
    """The first metric of a kind, else the first that is not of the other kind, else the first."""
    kinds = {metric: kind_of(metric, identities.get(metric, {})) for metric in metrics}
    other = "identity" if kind == "prompt" else "prompt"
    for wanted in ((kind,), ("",), (other,)):
        for metric in metrics:
            if kinds[metric] in wanted:
                return metric
    return metrics[0]
