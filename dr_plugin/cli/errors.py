"""How a mistake or a failure ends: in lines without a traceback, and a status."""

import os
import sys
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

errors = Console(stderr=True)

_WITH_A_RUN = "take --device cpu, lower evaluation.batch_size in the run's recipe.yaml"


def _fail(error: BaseException, status: int) -> None:
    """Print an error as red lines, no traceback, and exit; one of several processes says which one it is."""
    where = f"rank {os.environ.get('RANK')}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    for line in str(error).splitlines() or [type(error).__name__]:
        errors.print(f"[red]{escape(where + line)}[/red]", soft_wrap=True, highlight=False)
    sys.exit(status)


def guarded(action: Callable[[], None]) -> None:
    """Run an action; a mistake of the user's ends in one line and status 2, a failure of the run in status 1."""
    try:
        from dr_plugin.experiments.memory import out_of_memory
        from dr_plugin.experiments.recipe import RecipeError
        from dr_plugin.experiments.trainer import TrainingError

        action()
    except ImportError as error:  # first: the classes below may be what could not be imported
        _fail(error, 1)
    except RecipeError as error:
        _fail(error, 2)
    except (ValueError, OSError, TrainingError) as error:
        _fail(error, 1)
    except (RuntimeError, MemoryError) as error:
        if (text := out_of_memory(error, _WITH_A_RUN)) is None:
            raise
        _fail(TrainingError(text), 1)
    except KeyboardInterrupt as interrupt:
        _fail(interrupt, 130)
