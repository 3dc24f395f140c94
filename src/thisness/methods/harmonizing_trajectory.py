"""Second branches kept, so that many sentences of one subject share them.

The second branch reads the subject's words and no sentence, so it is the same for all sentences of a seed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import ConfigurationError

KeysValues = tuple[Tensor, Tensor]  # (positions, heads * d) each, of one row
Entry = Mapping[tuple[int, str, str], KeysValues]  # of one sample, by step, site and role


class SubjectTrajectory:
    """Keys and values of the swapped layers, by what the branch depends on and by each picture's noise.

    Pass it to every call: `generate(..., interventions=[AttentionSwap().sharing(trajectory)])`. What differs in
    subject, seed, size, settings, sampler or negative prompt is computed anew, never mixed up. Other attachments that
    change the second branch's rows are not part of what it is found by: use one trajectory for each set of them.

    The first sentence's pictures are the same bits as without it; later ones equal those computed anew up to rounding,
    since their batches are smaller.

    Attributes:
        found, computed: how many pictures' branches were found here, and computed.
    """

    def __init__(self, max_bytes: int = 4 * 2**30) -> None:
        """
        Args:
            max_bytes: what may be kept; the branches used longest ago are dropped. On SD 1.5 at 512 px in float16 a
                picture takes 24 MB for each step of the window and half of the guidance: 1.4 GB for 30 such steps.
        """
        if max_bytes < 1:
            raise ConfigurationError(f"max_bytes {max_bytes} must be 1 at least")
        self.max_bytes = max_bytes
        self.found = self.computed = 0
        self._kept: OrderedDict[str, Entry] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Kept now."""
        return sum(map(size_of, self._kept.values()))

    def __len__(self) -> int:
        """Pictures whose branch is kept."""
        return len(self._kept)

    def take(self, keys: Sequence[str]) -> list[Entry] | None:
        """Of all samples of a batch, or None where one is missing."""
        if any(key not in self._kept for key in keys):
            self.computed += len(keys)
            return None
        self.found += len(keys)
        for key in keys:
            self._kept.move_to_end(key)
        return [self._kept[key] for key in keys]

    def keep(self, key: str, entry: Entry) -> None:
        """Keep one sample's.

        Raises:
            ConfigurationError: it alone is larger than what may be kept.
        """
        needed = size_of(entry)
        if needed > self.max_bytes:
            raise ConfigurationError(
                f"the second branch of one picture takes {needed / 2**20:.0f} MiB, but the trajectory may keep "
                f"{self.max_bytes / 2**20:.0f}: raise max_bytes, or swap fewer layers or steps"
            )
        self._kept[key] = entry
        self._kept.move_to_end(key)
        while self.bytes > self.max_bytes:
            self._kept.popitem(last=False)


def size_of(entry: Entry) -> int:
    """Bytes."""
    return sum(each.numel() * each.element_size() for pair in entry.values() for each in pair)
