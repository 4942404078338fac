"""A data set of the hub by its name: `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`, huggingface_hub's own notation."""

from __future__ import annotations

import re
from pathlib import Path

from asyncrl.data.splits import FORMATS
from asyncrl.errors import DataError

HUB_PREFIX = "hf://"

_NAME = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<folder>[^@]+))?", re.ASCII)
_TIMEOUT_S = 10.0


def hub_folder(source: str) -> Path:
    """The folder of its snapshot in the local hub cache; what the cache lacks is downloaded first.

    What is in the cache is not looked up again: a commit as revision makes sure what it is.

    Raises:
        DataError: no such name, neither in the cache nor to be had from the hub, or without that folder.
    """
    match = _NAME.fullmatch(source.rstrip("/"))
    if match is None:
        raise DataError(
            f"{source}: a data set of the hub is hf://datasets/OWNER/NAME, with @REVISION and /FOLDER or not"
        )
    snapshot = _snapshot(source, match["name"], match["revision"], match["folder"])
    folder = snapshot / (match["folder"] or "")
    if not folder.exists():
        there = ", ".join(sorted(entry.name for entry in snapshot.iterdir())[:10]) or "nothing"
        raise DataError(f"{source}: no {match['folder']} in it; it has {there}")
    return folder


def _snapshot(source: str, name: str, revision: str | None, folder: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"{folder or ''}*{suffix}*" for suffix in FORMATS]
    options = {"repo_type": "dataset", "revision": revision, "allow_patterns": patterns}
    missing = f"{source}: not in the local hub cache ({constants.HF_HUB_CACHE})"
    way_out = f"download it where there is a network (hf download --repo-type dataset {name}), or give a local folder"
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise DataError(f"{missing}, and HF_HUB_OFFLINE is set; {way_out}") from error
    try:
        return Path(snapshot_download(name, etag_timeout=_TIMEOUT_S, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{missing}, and the hub did not give it ({reason}); {way_out}") from error
