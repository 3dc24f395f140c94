"""From what the user calls a model to the folder that holds it: the package, a local folder, or the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ..errors import ConfigurationError, UserError, nearest
from ..files import PICKLED
from .registry import Facts, find, known

HUB_SECONDS = 5.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(name: str, patterns: Sequence[str]) -> tuple[Path, str, Facts | None]:
    """Find the folder of a model, fetching it from the hub if need be.

    Args:
        name: a registered name or alias, a local folder, or a hub id. A registered name wins over a folder of the
            same name: write "./NAME" for the folder.
        patterns: which files of a hub repository to fetch; never pickles.

    Returns:
        The folder, the name to call the model by (no path of this machine), and what is registered of it.

    Raises:
        UserError: no such model, or it cannot be had (offline, gone, gated): one line that says what to do.
    """
    facts = find(name)
    if facts is not None and facts.folder:
        folder = Path(str(resources.files("thisness").joinpath(*facts.folder.split("/"))))
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"the embedded model {facts.name} is not in this installation: install the package with its weights, "
                "or train it with `thisness playroom train all`"
            )
        return folder, facts.name, facts
    if facts is not None:
        gone = next((reason for hub_id, reason in facts.gone.items() if hub_id.lower() == name.lower()), None)
        if gone is None:
            return from_hub(facts.hub, patterns), facts.name, facts
        cached = from_cache(name, patterns)
        if cached is None:
            raise UserError(f"{name} was {gone}: write {facts.name} for its copy at {facts.hub}")
        return cached, name, facts
    path = Path(name).expanduser()
    if path.is_dir():
        return path, path.resolve().name, None
    if path.is_file() or path.suffix.lower() in {*PICKLED, ".safetensors"}:
        raise UserError(
            f'{name} is a single file: expected a diffusers folder. Convert it once: python -c "from diffusers import '
            "StableDiffusionPipeline as P; P.from_single_file('IN').save_pretrained('OUT')\" (only a file you trust)"
        )
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return from_hub(name, patterns), name, None
    if name.startswith((".", "~", "/")) or os.sep in name:
        raise UserError(f"{name} is not a folder: expected a diffusers folder with model_index.json")
    names = [each for facts in known().values() for each in (facts.name, *facts.aliases)]
    raise ConfigurationError(
        f"no base {name!r}{nearest(name, names)}: known are {', '.join(known())}; or give a folder or a hub id (a/b)"
    )


def from_cache(hub_id: str, patterns: Sequence[str], revision: str | None = None) -> Path | None:
    """The folder of a repository that was fetched before, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def from_hub(
    hub_id: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    instead: str = "give --base a local folder or playroom-sd",
) -> Path:
    """Fetch the listed files of a repository, or take the copy that was fetched before when the hub does not answer.

    Args:
        revision: branch, tag or commit; the main branch where None.
        instead: what else the user can do without the hub, for the message.

    Raises:
        UserError: not fetched before, and the hub cannot be reached within seconds, or has no such public repository.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    problem = ""
    try:
        HfApi().model_info(
            hub_id, revision=revision, timeout=HUB_SECONDS
        )  # one request without retries: a dead network is known at once
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except (GatedRepoError, RepositoryNotFoundError):
        raise UserError(
            f"the hub has no public model {hub_id}: check its name; for a gated or private one accept its terms on "
            "its page and run `hf auth login`"
        ) from None
    except OfflineModeIsEnabled:
        problem = "HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        problem = f"the hub answers with status {error.response.status_code}"
    except Exception as error:  # of the HTTP library, whichever the hub's client uses
        problem = f"the hub cannot be reached ({type(error).__name__})"
    cached = from_cache(hub_id, patterns, revision)
    if cached is None:
        raise UserError(f"{hub_id} was not fetched before and {problem}: connect, or {instead}")
    return cached
