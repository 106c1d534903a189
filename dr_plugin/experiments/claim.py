"""One process a folder: a lock that ends with the process that holds it, however that ends."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

from dr_plugin.atomic import telling

from .launched import LAUNCH
from .problems import RecipeError

LOCK = ".lock"
# What a process leaves that was killed before it began.
_NOTHING = {LOCK, LAUNCH, f"{LAUNCH}.partial", "recipe.yaml.partial"}

Note = Callable[[str], None]


@contextmanager
def claimed(
    folder: Path, resume: bool, *, what: str = "run", note: Note = lambda text: None
) -> Iterator[None]:
    """A folder for this process alone, seen to be free or, to resume, to hold what was begun.

    The lock is the system's (``flock``) on ``folder/.lock``, which holds the process's number. It is taken before
    anything is written and given up at the end, or by the system when the process is killed; the file is then left, and
    is in nobody's way. A folder that was made for the lock alone is removed again.

    Args:
        folder: Is made if it is not there.
        resume: Whether something goes on in it, or begins.
        what: What goes on, in messages.
        note: Is told where the file system has no locks.
    Raises:
        RecipeError: if another process works in the folder, or it is not free or not as it must be to resume.
        WriteError: if it cannot be written to.
    """
    _check(folder, resume, what)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with telling(folder / LOCK):
            give_up = _take(folder / LOCK, "--resume" if resume else "--output", note)
        try:
            _check(folder, resume, what)  # another process may have begun, and ended, since
            yield
        finally:
            give_up()
    finally:
        for path in made:
            with suppress(OSError):  # something was written there
                path.rmdir()


def _check(folder: Path, resume: bool, what: str) -> None:
    if resume:
        if not (folder / "recipe.yaml").is_file():
            raise RecipeError(
                f"--resume: {folder} holds no recipe.yaml, expected the folder of an earlier {what}"
            )
    else:
        check_free(folder)


def check_free(folder: Path) -> None:
    """See that nothing is in the folder, which need not exist.

    Raises:
        RecipeError: if something is.
    """
    if not _is_free(folder):
        raise RecipeError(
            f"--output: {folder} is not empty; choose another folder, or go on with --resume {quote(str(folder))}"
        )


def _is_free(folder: Path) -> bool:
    try:
        return all(path.name in _NOTHING for path in folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _in_use(option: str, lock: Path, holder: str) -> RecipeError:
    who = f"process {holder}" if holder.isdecimal() else "another process"
    return RecipeError(
        f"{option}: {lock.parent} is in use by {who}; wait until it has ended, or choose another folder"
    )


if sys.platform == "win32":
    from filelock import FileLock, Timeout

    def _take(lock: Path, option: str, note: Note) -> Callable[[], None]:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            raise _in_use(option, lock, "") from None

        def give_up() -> None:
            held.release()
            lock.unlink(missing_ok=True)

        return give_up

else:
    import fcntl

    _held: set[int] = set()  # descriptors
    _TRIES = 1000
    _NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

    def _take(lock: Path, option: str, note: Note) -> Callable[[], None]:
        """Lock the file; gives what ends that.

        Not by filelock, which leaves the file behind, or removes it without a look at who has opened it meanwhile, as
        its version has it.
        """
        while True:
            descriptor = _open(lock)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace")
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise _in_use(option, lock, holder) from None
                if error.errno not in _NO_LOCKS:
                    raise
                note(f"{lock.parent}: this file system has no locks; see that no other run works there")
                return lambda: lock.unlink(missing_ok=True)
            if _is(descriptor, lock):
                break
            os.close(descriptor)  # who held it removed it between the two calls above
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        _held.add(descriptor)

        def give_up() -> None:
            if descriptor not in _held:  # a forked process, which ends as its parent would
                return
            # The file goes first: whoever has opened it finds that it is not the one that counts.
            lock.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)

        return give_up

    def _open(lock: Path) -> int:
        """Make the file and its folder, which others that held it may remove at the same time."""
        tries = 0
        while True:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            except (FileNotFoundError, FileExistsError):  # removed right after it was made, or found
                tries += 1
                if tries == _TRIES:
                    raise

    def _is(descriptor: int, lock: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(lock))
        except FileNotFoundError:
            return False

    def _let_go() -> None:
        """A forked process has no part in the lock: it would hold it on after its parent's end."""
        while _held:
            os.close(_held.pop())

    os.register_at_fork(after_in_child=_let_go)
