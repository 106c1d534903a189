"""Our own source makes no call that would break a promise of SECURITY.md, as far as names tell."""

import ast
from pathlib import Path

import pytest

import dr_plugin

PACKAGE = Path(dr_plugin.__file__).parent
OWN = {  # what reads code, where it must: what is read there is our own, and SECURITY.md says so
    ("dr_plugin/distributed.py", "torch.distributed.broadcast_object_list"),
    ("dr_plugin/distributed.py", "torch.distributed.all_gather_object"),
    ("dr_plugin/evaluation/export.py", "torch.export.load"),
    ("dr_plugin/trunks/convnets.py", "pickle"),  # for the name of an error
}
MODULES = {"pickle", "_pickle", "marshal", "dill", "cloudpickle", "shelve", "joblib", "subprocess", "pty"}
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "shutil.unpack_archive"),
    *("torch.jit.load", "torch.export.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("torch.distributed.broadcast_object_list", "torch.distributed.all_gather_object"),
    *("torch.distributed.gather_object", "torch.distributed.scatter_object_list"),
}
BEGINNINGS = ("os.exec", "os.spawn", "os.posix_spawn", "pickle.", "joblib.")
WANTED = {"torch.load": ("weights_only", "True"), "numpy.load": ("allow_pickle", "False")}
SWITCHES = {"MAX_IMAGE_PIXELS", "LOAD_TRUNCATED_IMAGES"}  # of Pillow's


def imported(tree):
    """What each name of the source stands for, by its import."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                names[one.asname or one.name.partition(".")[0]] = (
                    one.name if one.asname else one.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return names


def modules(tree):
    """Every module that is imported, but for relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def calls(tree):
    """Every call, by its dotted name as far as the imports tell."""
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield names.get(first, first) + dot + rest, words


def faults(tree):
    yield from (name for name in modules(tree) if name.partition(".")[0] in MODULES)
    for name, words in calls(tree):
        short = name.rpartition(".")[2]
        if (
            name in FORBIDDEN
            or name.startswith(BEGINNINGS)
            or short in ("extractall", "extract", "Unpickler")
        ):
            yield name
        if name in WANTED and words.get(WANTED[name][0]) != WANTED[name][1]:
            yield name
        if short == "YAML" and words.get("typ") != "'safe'":
            yield name
    yield from (
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in SWITCHES
    )


def test_source_makes_no_call_that_reads_code():
    found = {
        (path.relative_to(PACKAGE.parent).as_posix(), fault)
        for path in PACKAGE.rglob("*.py")
        for fault in faults(ast.parse(path.read_text()))
    }
    assert found == OWN


@pytest.mark.parametrize(
    "code",
    [
        "import torch; torch.load(x)",
        "import torch as t; t.load(x, weights_only=False)",
        "from torch import load; load(x)",
        "from torch import load as read; read(x)",
        "import numpy as np; np.load(x, mmap_mode='r')",
        "eval('1')",
        "from ruamel.yaml import YAML; YAML()",
        "tar.extractall()",
        "import subprocess",
        "from subprocess import run",
        "from pickle import loads as plain",
        "import joblib.numpy_pickle",
        "import marshal",
        "import torch; torch.jit.load(x)",
        "import torch.export; torch.export.load(x)",
        "from shutil import unpack_archive; unpack_archive(x)",
        "import os; os.execvp(x, [])",
        "import os; os.spawnl(0, x)",
        "import torch.distributed as dist; dist.all_gather_object(x, y)",
        "from PIL import Image; Image.MAX_IMAGE_PIXELS = None",
        "from PIL import ImageFile; ImageFile.LOAD_TRUNCATED_IMAGES = True",
    ],
)
def test_source_check_finds(code):
    assert list(faults(ast.parse(code)))
