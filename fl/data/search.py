"""Where data files are looked for: the folders that the user names first, the cache last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedveil.fl.errors import FedveilError, brief

VARIABLE = "FEDVEIL_DATA"
_REPOSITORY = Path(__file__).resolve().parents[2]


_NOT_UPLOADED = (
    "; a Ray job leaves out of its upload what .gitignore and .rayignore name: give the data's absolute path on the cluster,"
    f" or put its folder on all nodes and into {VARIABLE}, or submit with RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1"
)


def in_job_copy(folder: Path) -> bool:
    """Return whether Ray unpacked ``folder`` from a job's ``--working-dir``: a temporary copy, lost with the job."""
    return "working_dir_files" in folder.parts


def cache_folder() -> Path:
    """Return where downloads go: ``data/cache`` below the working folder. It need not exist yet."""
    return Path.cwd() / "data" / "cache"


def search_folders() -> tuple[Path, ...]:
    """Return the existing folders to look in, best first, each once.

    They are those of ``FEDVEIL_DATA`` (several are joined as in ``PATH``), ``../shared/data`` beside the
    working folder and beside the checkout, and the download cache.

    Raises:
        FedveilError: ``FEDVEIL_DATA`` names a folder that does not exist.
    """
    named = [Path(text).expanduser() for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
    for folder in named:
        if not folder.is_dir():
            raise FedveilError(f"{VARIABLE}: there is no folder {folder}; allowed: folders joined by {os.pathsep!r}")
    beside = [root.parent / "shared" / "data" for root in (Path.cwd(), _REPOSITORY)]
    folders = [folder.resolve() for folder in [*named, *beside, cache_folder()] if folder.is_dir()]
    return tuple(dict.fromkeys(folders))


def searched() -> str:
    """Return the folders of `search_folders` for an error message."""
    return ", ".join(map(str, search_folders())) or f"no folder (set {VARIABLE} to one)"


def find_first(names: Sequence[str]) -> Path | None:
    """Return the first file or folder with one of ``names``; an earlier folder wins over an earlier name."""
    candidates = (folder / name for folder in search_folders() for name in names)
    return next((path for path in candidates if path.exists()), None)


def find_all(name: str) -> list[Path]:
    """Return the files and folders called ``name``, best first."""
    return [path for path in (folder / name for folder in search_folders()) if path.exists()]


def user_path(given: str, *, what: str) -> Path:
    """Resolve a path that the user gave: in the working folder, then, if relative, in the search folders.

    Raises:
        FedveilError: nothing is there, and the message says where it was looked for; or this is no path.
    """
    try:
        path = Path(given).expanduser()
        if path.exists():
            return path
        found = None if path.is_absolute() else find_first([given])
    except OSError as error:
        raise FedveilError(f"{brief(what)}: this path cannot be looked up ({error.strerror})") from error
    except RuntimeError as error:  # of `expanduser`: a home folder that is not known
        raise FedveilError(f"{brief(what)}: this path cannot be looked up ({brief(error)})") from error
    if found is None:
        places = "" if path.is_absolute() else f" in {Path.cwd()}, {searched()}"
        upload = "" if path.is_absolute() or not in_job_copy(Path.cwd()) else _NOT_UPLOADED
        raise FedveilError(f"{brief(what)}: there is no {brief(repr(given))}{places}{upload}")
    return found
