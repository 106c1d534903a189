"""The recipes that come with the package."""

import os
import tempfile
from pathlib import Path

from .problems import RecipeError, nearest, one_of

_PACKAGE = Path(__file__).resolve().parent.parent


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside an installed package, beside the package in a checkout.

    Raises:
        RecipeError: if neither is there, as in a broken installation.
    """
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if any(folder.glob("*.yaml")):
            return folder
    raise RecipeError(
        f"the shipped recipes are in neither {_PACKAGE / 'recipes'} nor {_PACKAGE.parent / 'recipes'}"
    )


def names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(file.stem for file in recipes_folder().glob("*.yaml"))


def path(name: str) -> Path:
    """The file of the shipped recipe ``name``.

    Raises:
        RecipeError: if there is neither a file nor a shipped recipe of this name.
    """
    known = names()
    if name not in known:
        near = nearest(Path(name).stem, known)
        raise RecipeError(f"{name}: got no file of this name, {one_of(known)}, or a file{near}")
    return recipes_folder() / f"{name}.yaml"


def copy(name: str, destination: str | os.PathLike[str] = ".") -> Path:
    """Copy a shipped recipe, whole or not at all, to a file or into a folder; gives the new file.

    Raises:
        RecipeError: if the name is unknown, the file is there already or cannot be written.
    """
    source, target = path(name), Path(destination)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise RecipeError(f"{target}: exists already; choose another name, or delete it first")
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(source.read_bytes())
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's own mode hides the file from other users
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise RecipeError(f"{target}: cannot be written: {error.strerror}") from error
    return target
