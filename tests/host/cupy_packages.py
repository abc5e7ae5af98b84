"""Packages `cupy` and `cupyx` of a few files, without arrays: what code that looks for cuDNN sees of CuPy."""

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

FILES = {
    "cupy/__init__.py": """
        import numpy
        from cupy import cuda
        __version__ = "14.2.0"
        def get_array_module(*arrays):
            return numpy
        class ElementwiseKernel:  # CuPy compiles it when it is called, which here it never is
            def __init__(self, *definition, **options):
                pass
    """,
    "cupy/cuda/__init__.py": "",
    "cupyx/__init__.py": "",
}


@contextmanager
def importable(folder, **more):
    """Let `import cupy` find packages of these files in a folder; afterwards no trace of them is left.

    `more` holds files by path, with __ for /, as in ``cupy__cudnn="available = True"``.
    """
    files = FILES | {f"{path.replace('__', '/')}.py": text for path, text in more.items()}
    for path, text in files.items():
        file = Path(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    hidden = _take_away()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        _take_away()
        sys.modules.update(hidden)


def _take_away():
    names = [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx")]
    return {name: sys.modules.pop(name) for name in names}
