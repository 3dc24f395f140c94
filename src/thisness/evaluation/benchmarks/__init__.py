"""What to measure on: benchmarks read from their user's own copy, and the Playroom's, which is rendered.

registry.py    BENCHMARKS by name, their protocols (protocols.json), load_benchmark
describe.py    in words; which pictures in all
layout.py, sentences.py    what the loaders share: folders that are nearly right, sentences and their contexts
dreambench.py, dreambench_plus.py, customconcept.py, dreamedit.py, ds.py, celeba.py, folder.py    one layout each
playroom.py, playroom_prompts.py    held-out toys, with the truth about every reference
"""

from .describe import already_shown, describe, pairs
from .registry import BENCHMARKS, Entry, Protocol, load_benchmark

__all__ = ["BENCHMARKS", "Entry", "Protocol", "already_shown", "describe", "load_benchmark", "pairs"]
