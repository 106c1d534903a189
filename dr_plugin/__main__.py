"""``python -m dr_plugin run RECIPE``: the command ``dr``, for torchrun to start."""

from dr_plugin.cli import main

if __name__ == "__main__":
    main(prog_name="dr")
