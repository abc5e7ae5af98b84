"""From a kernel's text to functions on the CPU: g++ with sanitizers, variants together, kept by content."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

from gpuconv.backends.cuda import sources
from gpuconv.backends.cuda.kernels import C_TYPES

HERE = Path(__file__).parent
# Set by the launch instead of compiled in: a window more costs no compilation then.
CONSTANTS = ("K0", "K1", "K2", "S0", "S1", "S2", "D0", "D1", "D2", "AXES")
CONSTANTS += ("ROWS", "COLUMNS", "IN", "OUT", "LEAD", "PHASE1", "PHASE2")  # of tiles
# Of no consequence here.
HINTS = ("UNROLL", "UNROLL_ROWS", "RESIDENT")
# These run for longer than they compile. All others together run for seconds and compile for minutes; wholly
# without optimisation g++ wouldn't check that a pointer stays within an object.
OPTIMISED = ("implicit_gemm", "implicit_weight_grad", "winograd")
# Compiled together: one more variant costs 30 ms, another run of g++ 200 to 400 ms.
TOGETHER = {"VECTOR": ("1", "2", "4", "8", "16"), "CHANNELS_LAST": ("0", "1"), "INDEX": ("int", "long long")}
SIZES = {c_type: np.dtype(name).itemsize for name, c_type in C_TYPES.items()}
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", "-Wl,--as-needed")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined")
# Calls before each access, for races.h, in place of a library that would have to be loaded before Python.
RACES = ("-fsanitize=thread", "-nodefaultlibs", "-fno-exceptions", "-DHOST_RACES")
ADDRESS = ("-g1", "-fno-omit-frame-pointer", "-fsanitize=address", "-fsanitize-recover=address")

VALUE, CONST_POINTER, POINTER = range(3)


class Entry(ctypes.Structure):
    """A compiled variant: its trampoline, and sizes and kinds of its arguments."""

    _fields_ = (
        ("call", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("size", ctypes.c_int * 16),
        ("kind", ctypes.c_int * 16),
    )


class Array(ctypes.Structure):
    """An array in which races are looked for, and what is noted of its bytes."""

    _fields_ = (("start", ctypes.c_size_t), ("size", ctypes.c_size_t), ("seen", ctypes.c_void_p))


class Launch(ctypes.Structure):
    """What `gpuconv_host_run` is given."""

    _fields_ = (
        ("call", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("blocks", ctypes.c_void_p),
        ("threads", ctypes.c_void_p),
        ("block_count", ctypes.c_uint),
        ("thread_count", ctypes.c_uint),
        ("shared_size", ctypes.c_uint),
        ("copies_at_once", ctypes.c_uint),
        ("arrays", ctypes.c_void_p),
        ("array_count", ctypes.c_uint),
    )


@cache
def address_sanitized():
    """Tell whether this process runs under the address sanitizer: it must have been loaded before Python."""
    return hasattr(ctypes.CDLL(None), "__asan_init")


@cache
def headers():
    """Return the folder of CUDA's headers, or None."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    folders = (packages / "cu13/include", packages / "cuda_runtime/include", Path("/usr/local/cuda/include"))
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


def missing():
    """Return why kernels can't be compiled for the CPU here, or ""."""
    if shutil.which("g++") is None:
        return "needs g++ to run CUDA kernels on the CPU"
    if headers() is None:
        return "needs CUDA's headers to run its kernels on the CPU: pip install nvidia-cuda-runtime"
    return ""


def load(kernel, exact=False, races=False):
    """Return a kernel's library and entry.

    `exact` compiles the window's constants in, as on a GPU, and this variant alone. With `races`, they are
    found.
    """
    own = dict(kernel.defines)
    front = re.compile(rf"^#define ({'|'.join(map(re.escape, own))}) .*\n", re.MULTILINE)
    text = front.sub("", kernel.text)
    if not exact:
        own |= {name: "1" for name in HINTS if name in own}
        own |= {
            name: f"host_constants[{i}]"
            for i, name in enumerate(CONSTANTS)
            if name in own and name not in _words_in_conditions(text)
        }
    variants = [own] if exact else _variants(own)
    library = _library(kernel.name, kernel.function, text, tuple(tuple(v.items()) for v in variants), races)
    return library, Entry.in_dll(library, f"gpuconv_host_entry_{variants.index(own)}")


@cache
def _words_in_conditions(text):
    """Return what the preprocessor must know."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"^\s*#\s*(?:el)?if.*", text, re.MULTILINE))))


def _variants(own):
    if "DEPTH" in own:  # of matrix products: their tiles differ with the layout, and each takes half a second
        return [own]
    choices = {name: values for name, values in TOGETHER.items() if name in own}
    chosen = (dict(zip(choices, values, strict=True)) for values in product(*choices.values()))
    size = SIZES.get(own.get("T"), 16)
    variants = [{**own, **some} for some in chosen if size * int(some.get("VECTOR", 1)) <= 16]
    return variants if own in variants else [*variants, own]


def _program(name, function, text, variants):
    """Return a translation unit: each variant in a namespace of its own, under a name of its own."""
    includes = re.findall(r"^#include .*\n", text, re.MULTILINE)
    body = re.sub(r"^#include .*\n", "", text, flags=re.MULTILINE)
    # Messages name the line in the file.
    before, common, own = body.rpartition(sources.common())
    if common:
        common = f'#line 1 "common.cuh"\n{common}\n'
    body = f'{before}{common}#line 1 "{name}.cu"\n{own.removeprefix(chr(10))}'
    parts = [*includes, (HERE / "cuda.h").read_text(encoding="utf-8")]
    for i, defines in enumerate(variants):
        parts.append(f"namespace variant_{i} {{\n")
        parts += [f"#undef {key}\n#define {key} {value}\n" for key, value in defines]
        parts.append(f"#undef {function}\n#define {function} {function}_{i}\n{body}\n}}\n")
        entry = f"HOST_ENTRY(variant_{i}::{function})"
        parts.append(f'extern "C" host::Entry gpuconv_host_entry_{i} = {entry};\n')
    return "".join(parts)


def cache_folder():
    """Return where compiled libraries are kept; any of them may be deleted at any time."""
    if given := os.environ.get("GPUCONV_TEST_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gpuconv-tests"


@cache
def _compiler():
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    stand_ins = sorted(path for path in (HERE / "stand_ins").rglob("*") if path.is_file())
    return version + "".join(path.read_text(encoding="utf-8") for path in stand_ins)


def kept(content, make):
    """Return where the library is that `make` writes to a path, made once for all that it depends on."""
    path = cache_folder() / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written elsewhere and renamed: another process finds a whole library or none.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            make(made)
            made.replace(path)
    return path


@cache
def _library(name, function, text, variants, races):
    program = _program(name, function, text, variants)
    sanitizer = ADDRESS if address_sanitized() else RACES if races else ()
    level = "-O1" if name in OPTIMISED else "-Og"
    flags = (
        *FLAGS,
        level,
        *UNDEFINED,
        *sanitizer,
        "-isystem",
        str(headers()),
        "-idirafter",
        str(HERE / "stand_ins"),
    )

    def make(path):
        command = ["g++", *flags, "-x", "c++", "-", "-o", str(path)]
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        run = subprocess.run(command, input=program, text=True, capture_output=True, env=environment)
        if run.returncode:
            raise RuntimeError(f"g++ can't compile this kernel:\n{run.stderr[:4000]}")

    library = ctypes.CDLL(str(kept("\0".join((program, _compiler(), *flags)), make)))
    library.gpuconv_host_run.restype = ctypes.c_char_p
    return library
