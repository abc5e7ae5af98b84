"""Around the C kernels: compilers that fail, caches that can't be used, many callers at once; sanitizers."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from host import compiler as host_compiler
from host import sanitized

import gpuconv
from gpuconv import files
from gpuconv.backends.cpu import compiled, compiler, libraries, threads
from gpuconv.cli import main

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(sys.platform == "win32", reason="its compilers are shell scripts")
X = np.ones((1, 2, 6, 6), np.float32)
W = np.ones((3, 2, 1, 1), np.float32)  # for which the part "direct" is all that is asked for


@pytest.fixture(autouse=True)
def nobody_asked_yet(monkeypatch, tmp_path):
    """As in a process that has just begun, with an empty cache."""
    monkeypatch.setattr(compiled, "_found", {})
    monkeypatch.setattr(compiled, "_why_not", "")
    monkeypatch.setattr(gpuconv.config, "compiled", True)
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The library of the part "direct" for float32, compiled once, with as little optimisation as will do."""
    found = compiler.find()
    if found is None:
        pytest.skip("needs a C compiler")
    out = tmp_path_factory.mktemp("real") / "kernels.so"
    compiler.run(found._replace(command=(*found.command, "-O1", "-march=native")), "direct", 4, out)
    return out


@pytest.fixture
def fake(real, tmp_path, monkeypatch):
    """A compiler that hands out the real library at once, and counts its runs; or does something else."""

    def make(does='cp "$library" "$out"'):
        script = tmp_path / "cc"
        runs = tmp_path / "runs"
        script.write_text(
            f"#!/bin/sh\necho ran >>'{runs}'\nlibrary='{real}'\n"
            f'while [ "$1" != -o ]; do shift; done; out=$2\n{does}\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("GPUCONV_CC", str(script))
        return SimpleNamespace(runs=lambda: len(runs.read_text().split()) if runs.exists() else 0)

    return make


def forget():
    compiled._found.clear()


def is_compiled():
    """Compute something, rightly in any case; tell whether C kernels would."""
    assert (gpuconv.conv2d(X, W) == 2).all()
    return compiled.kernels(X) is not None


def warned():
    """Compute twice; return what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_compiled()
        is_compiled()
        if compiled.why_not():  # then float64 isn't tried, either
            assert compiled.kernels(X.astype(np.float64)) is None
    return [str(warning.message) for warning in caught]


def kept(tmp_path):
    return sorted((tmp_path / "cache").glob("kernels-*"))


def run(program, *, wait=True, **environment):
    """Start a Python program in this environment; return what it printed, or the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "GPUCONV_COMPILED": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return finished(process) if wait else process


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.split()


def test_without_a_compiler_numpy_computes_and_nothing_is_said(monkeypatch):
    monkeypatch.setattr(compiler, "_zig", lambda: None)
    monkeypatch.delenv("GPUCONV_CC", raising=False)
    assert warned() == []
    assert not is_compiled()
    assert compiled.why_not() == "there is no compiler: pip install 'gpuconv[fast]' brings one"


@pytest.mark.parametrize("nothing", ["", "  "])
def test_an_empty_gpuconv_cc_is_no_compiler(monkeypatch, nothing):
    monkeypatch.setenv("GPUCONV_CC", nothing)
    assert warned() == []
    assert compiled.why_not() == "GPUCONV_CC is empty"


@posix
@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("echo 'in file x'; echo 'x.c:3: error: no such thing' >&2; exit 1", "x.c:3: error: no such thing"),
        ("exit 7", "exit status 7"),
        ("exit 0", "wrote no library"),
        (': >"$out"', "wrote no library"),
        ('echo "no library" >"$out"', "file too short|invalid ELF header|not a|slice is not valid"),
        ('printf "\\377\\376" >&2; exit 1', "failed: "),
        ("sleep 60 & sleep 60", "didn't end within 0.2 s"),
    ],
)
def test_a_compiler_that_fails_is_warned_of_once(fake, monkeypatch, does, reason):
    monkeypatch.setattr(compiler, "TIMEOUT", 0.2)
    compiler_ran = fake(does)
    (said,) = warned()
    assert "NumPy computes, slower" in said
    assert "GPUCONV_CC names another C compiler; GPUCONV_COMPILED=0 does without" in said
    assert re.search(reason, said), said
    assert compiled.why_not() in said
    assert compiler_ran.runs() == 1


@pytest.mark.parametrize("asked", ["/no/such/compiler", "no-such-compiler -O2", "'"])
def test_a_compiler_that_is_not_there_is_warned_of_once(monkeypatch, asked):
    monkeypatch.setenv("GPUCONV_CC", asked)
    (said,) = warned()
    assert "there is no program" in said or "quotation" in said


def test_warnings_as_errors_are_raised_once_and_the_next_call_computes(monkeypatch):
    monkeypatch.setenv("GPUCONV_CC", "/no/such/compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="no program"):
            gpuconv.conv2d(X, W)
        assert not is_compiled()


def test_a_broken_package_ziglang_is_none_or_named(monkeypatch, tmp_path):
    monkeypatch.delenv("GPUCONV_CC", raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == "ziglang"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    sys.path_importer_cache.clear()
    (tmp_path / "ziglang").mkdir()
    assert compiler.find() is None  # what an uninstall leaves
    (tmp_path / "ziglang" / "__init__.py").touch()
    importlib.invalidate_caches()
    (said,) = warned()
    assert "the package ziglang has no" in said
    assert "install it again" in said
    program = tmp_path / "ziglang" / ("zig.exe" if sys.platform == "win32" else "zig")
    program.touch()
    (tmp_path / "ziglang-0.99.0.dist-info").mkdir()
    found = compiler.find()
    assert (found.name, found.command) == ("zig 0.99.0", (str(program), "cc"))


@posix
def test_the_second_process_finds_the_library_of_the_first(fake, tmp_path):
    compiler_ran = fake()
    assert is_compiled()
    (path,) = kept(tmp_path)
    forget()
    assert is_compiled()
    assert (compiler_ran.runs(), kept(tmp_path)) == (1, [path])
    assert path.stat().st_mode & 0o077 == 0


def spoiled(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "changed":
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif how == "writable by others":
        path.chmod(0o666)
    else:  # a whole file, and no library
        key = path.name.split("-")[1]
        path.unlink()
        (path.parent / libraries._name(key, b"foreign")).write_bytes(b"foreign")


@posix
@pytest.mark.parametrize("how", ["truncated", "empty", "changed", "writable by others", "foreign"])
def test_a_library_that_cannot_be_trusted_is_compiled_again_and_replaced(fake, tmp_path, how):
    compiler_ran = fake()
    assert is_compiled()
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    copy = tmp_path / "copy"  # the loaded file itself mustn't change: its pages are this process's
    shutil.copy(path, copy)
    os.replace(copy, path)
    spoiled(path, how)
    forget()
    assert warned() == []
    assert is_compiled()
    assert compiler_ran.runs() == 2
    (path,) = kept(tmp_path)
    assert path.read_bytes() == whole
    assert path.stat().st_mode & 0o022 == 0


def no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "file"))


def below_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "file" / "cache"))


def no_home(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    for name in ("GPUCONV_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fail)


def full(monkeypatch, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    def on_a_full_disk(**_):
        return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "cache" / "kernels-x.new")

    monkeypatch.setattr(libraries.tempfile, "mkstemp", on_a_full_disk)


@posix
@pytest.mark.parametrize("cannot", [no_folder, below_a_file, no_home, full])
def test_where_nothing_can_be_kept_the_process_has_kernels_and_one_warning(
    fake, monkeypatch, tmp_path, cannot
):
    cannot(monkeypatch, tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    compiler_ran = fake()
    (said,) = warned()
    assert is_compiled()
    assert "can't be kept" in said
    assert "set GPUCONV_CACHE_DIR" in said
    assert compiler_ran.runs() == 1
    assert not list(tmp_path.glob("gpuconv-*"))  # nothing stays behind


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_warned_of(fake, tmp_path):
    fake()
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "can't be kept" in warned()[0]
    assert is_compiled()


@posix
def test_the_folder_keeps_a_bounded_number_of_libraries_and_what_is_not_ours(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "KEPT", 3)
    cache = tmp_path / "cache"
    cache.mkdir()
    for age in range(6):
        old = cache / f"kernels-{age}-{age}.so"
        old.touch()
        os.utime(old, (time.time() - 1000 * (age + 1),) * 2)
    (cache / "kernels-abc.new").touch()  # of a process that ended in the middle
    os.utime(cache / "kernels-abc.new", (1000, 1000))
    (cache / "thesis.txt").touch()
    fake()
    assert is_compiled()
    names = {path.name for path in kept(tmp_path)}
    assert len(names) == 3
    assert {"kernels-0-0.so", "kernels-1-1.so"} < names
    assert (cache / "thesis.txt").exists()


ONE_CALL = """
import numpy as np, gpuconv
from gpuconv.backends.cpu import compiled
x, w = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 1, 1), np.float32)
assert (gpuconv.conv2d(x, w) == 2).all()
print(compiled.kernels(x) is not None, compiled.why_not())
"""


@posix
def test_processes_that_begin_together_compile_once(fake):
    compiler_ran = fake('sleep 1; cp "$library" "$out"')
    together = [run(ONE_CALL, wait=False) for _ in range(4)]
    assert [finished(process) for process in together] == [["True"]] * 4
    assert compiler_ran.runs() == 1


@posix
def test_threads_that_call_together_compile_once(fake):
    compiler_ran = fake('sleep 0.3; cp "$library" "$out"')
    together, right = threading.Barrier(6, timeout=30), []

    def first_call():
        together.wait()
        right.append(is_compiled())

    callers = [threading.Thread(target=first_call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert right == [True] * 6
    assert compiler_ran.runs() == 1


INTERRUPTED = """
import os, signal, threading, time
import numpy as np, gpuconv
from gpuconv.backends.cpu import compiled
script = os.environ["GPUCONV_CC"]
quick = open(script).read().replace("exec sleep 60", "")
x, w = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 1, 1), np.float32)

def interrupt():
    while not os.path.exists(os.path.dirname(script) + "/runs"):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    gpuconv.conv2d(x, w)
except KeyboardInterrupt:
    print("interrupted")
open(script, "w").write(quick)
assert (gpuconv.conv2d(x, w) == 2).all()
print(compiled.kernels(x) is not None)
"""


@posix
def test_after_ctrl_c_during_the_compilation_the_next_call_tries_again(fake):
    fake('exec sleep 60\ncp "$library" "$out"')
    assert run(INTERRUPTED) == ["interrupted", "True"]


@posix
def test_a_compiler_that_ctrl_c_ended_is_no_compiler_that_fails(fake):
    fake("kill -INT $$; sleep 5")
    with pytest.raises(KeyboardInterrupt):
        gpuconv.conv2d(X, W)
    fake()
    assert is_compiled()


FORKED = """
import os, threading, time
import numpy as np, gpuconv
from gpuconv.backends.cpu import compiled
x, w = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 1, 1), np.float32)

def right():
    return (gpuconv.conv2d(x, w) == 2).all() and compiled.kernels(x) is not None

def child_is_right():
    child = os.fork()
    if not child:
        try:
            os._exit(0 if right() else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0

other = threading.Thread(target=right)
other.start()
runs = os.path.dirname(os.environ["GPUCONV_CC"]) + "/runs"
while not os.path.exists(runs):
    time.sleep(0.02)
print(child_is_right())  # forked while another thread compiles
other.join()
print(right(), child_is_right())
"""


@posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_has_kernels_whenever_it_was_forked(fake):
    compiler_ran = fake('sleep 1; cp "$library" "$out"')
    assert run(FORKED) == ["True"] * 3
    assert compiler_ran.runs() == 1


def test_a_key_is_of_the_sources_the_compiler_its_flags_the_dtype_and_the_processor(monkeypatch):
    by = compiler.Compiler("cc", ("cc",), "cc 1", False)
    f32, f64 = np.dtype(np.float32), np.dtype(np.float64)
    keys = [
        compiled._key(by, "pooling", f32),
        compiled._key(by, "direct", f32),
        compiled._key(by, "direct", f64),
        compiled._key(by._replace(identity="cc 2"), "direct", f32),
    ]
    keys.append(compiled._key(by._replace(command=("cc", "-march=x86-64")), "direct", f32))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "processor", lambda: "another")
        keys.append(compiled._key(by, "direct", f32))
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_sources", lambda part: {"direct.c": "another"})
        keys.append(compiled._key(by, "direct", f32))
    assert len(set(keys)) == 7
    assert compiled._key(by, "direct", f32) == keys[1]


@pytest.mark.parametrize(
    ("platform", "environment", "place"),
    [
        ("linux", {"GPUCONV_CACHE_DIR": "/somewhere"}, "/somewhere"),
        ("linux", {"GPUCONV_CACHE_DIR": "~/here"}, "/home/me/here"),
        ("linux", {"XDG_CACHE_HOME": "/cache"}, "/cache/gpuconv"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache/gpuconv"),
        ("linux", {}, "/home/me/.cache/gpuconv"),
        ("darwin", {}, "/home/me/Library/Caches/gpuconv"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/gpuconv/Cache"),
        ("win32", {}, "/home/me/AppData/Local/gpuconv/Cache"),
    ],
)
@posix
def test_each_platform_has_its_folder(monkeypatch, platform, environment, place):
    for name in ("GPUCONV_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert files.cache_folder() == Path(place)


def test_an_options_own_kind_takes_its_default_s_place():
    def flags(*command):
        return compiler.flags(compiler.Compiler("cc", ("cc", *command), "", False), 4)

    assert {"-O3", "-g0", "-DNUMBER_BYTES=4"} < set(flags())
    assert "-O3" not in flags("-O1")
    assert "-g0" not in flags("-g")
    assert not [flag for flag in flags("-march=x86-64-v3") if flag.endswith("=native")]


def test_info_says_who_compiled_or_why_nobody_did(fake, monkeypatch, tmp_path, capsys):
    def line():
        forget()
        assert main(["info"]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("C kernels"))

    if sys.platform != "win32":
        fake()
        wanted = rf"C kernels compiled by .*cc, vectors of (16|32|64) bytes; kept in {tmp_path / 'cache'}"
        assert re.fullmatch(wanted, line())
        monkeypatch.setenv("GPUCONV_CACHE_DIR", "/dev/null")
        assert line().endswith("bytes; not kept: GPUCONV_CACHE_DIR names another folder")
    monkeypatch.setenv("GPUCONV_CC", "no-such-compiler")
    assert "none: GPUCONV_CC is 'no-such-compiler', but there is no program" in line()
    monkeypatch.setattr(gpuconv.config, "compiled", False)
    assert line() == "C kernels off (GPUCONV_COMPILED=0); NumPy computes"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unaligned_arrays_are_left_to_numpy(real, dtype):
    memory = np.zeros(65 * 8, np.uint8)
    crooked = memory[1 : 1 + 36 * np.dtype(dtype).itemsize].view(dtype).reshape(1, 1, 6, 6)
    crooked[...] = 1
    assert not crooked.flags.aligned
    assert compiled.kernels(crooked) is None
    assert (gpuconv.conv2d(crooked, np.ones((1, 1, 3, 3), dtype)) == 9).all()


def test_buffers_are_given_back_by_one_call(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 2)
    x, w = np.ones((4, 16, 40, 40), np.float32), np.ones((16, 16, 3, 3), np.float32)
    with gpuconv.config(compiled=False):
        gpuconv.conv2d(x, w)
        gpuconv.release_buffers()
        tracemalloc.start()
        try:
            y = gpuconv.conv2d(x, w)
            held = tracemalloc.get_traced_memory()[0] - y.nbytes
            gpuconv.release_buffers()
            left = tracemalloc.get_traced_memory()[0] - y.nbytes
        finally:
            tracemalloc.stop()
        assert held > 500_000
        assert left < 50_000
        assert (gpuconv.conv2d(x, w) == y).all()


def width(march):
    """Whether this processor runs what is compiled for `march`."""
    if march == "native":
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "lm" in flags and (march == "x86-64" or {"avx2", "fma", "bmi2"} <= set(flags))


# Optimised, they take gcc minutes.
SANITIZED = "-O0 -g1 -fno-omit-frame-pointer -fsanitize=address"


@pytest.mark.skipif(bool(sanitized.missing_sanitizer()), reason=sanitized.missing_sanitizer() or "-")
@pytest.mark.parametrize(
    ("march", "dtype", "undefined"),
    [
        ("x86-64", "float32", "-fsanitize=undefined -fno-sanitize-recover=undefined"),
        ("x86-64-v3", "float64", ""),
        ("native", "float32", ""),
    ],
)
def test_kernels_of_every_vector_width_stay_inside_their_arrays_and_agree_with_numpy(
    march, dtype, undefined, tmp_path, monkeypatch
):
    if not width(march):
        pytest.skip(f"this processor isn't {march}")
    monkeypatch.setenv("GPUCONV_CC", f"gcc -march={march} {SANITIZED} {undefined}")
    (tmp_path / "cache").mkdir()
    by = compiler.find()
    for part in compiled.PARTS:  # gcc itself runs without the sanitizer
        key = compiled._key(by, part, np.dtype(dtype))
        made = host_compiler.kept(key, partial(compiler.run, by, part, np.dtype(dtype).itemsize))
        libraries._keep(tmp_path / "cache", key, made)
    done = sanitized.python(ROOT / "tests" / "random_calls.py", dtype, 150, GPUCONV_COMPILED="1")
    assert done.returncode == 0, done.stderr[:3000]
    assert int(done.stdout) > 100


# Which zig takes for a wish to have undefined behaviour reported, by a library of its own.
UNOPTIMISED = ("-O0", "-fno-sanitize=undefined")


@pytest.mark.parametrize(
    ("target", "platform", "machine", "begins"),
    [
        ("aarch64-linux-gnu", "linux", "aarch64", b"\x7fELF"),
        ("x86_64-windows-gnu", "win32", "AMD64", b"MZ"),
        ("aarch64-macos", "darwin", "arm64", b"\xcf\xfa\xed\xfe"),
    ],
)
def test_zig_compiles_for_other_systems(target, platform, machine, begins, monkeypatch):
    monkeypatch.delenv("GPUCONV_CC", raising=False)
    zig = compiler.find()
    if zig is None:
        pytest.skip("needs the extra `fast`")
    monkeypatch.setattr(sys, "platform", platform)
    model = "-march=x86_64_v3" if machine == "AMD64" else "-mcpu=generic"
    there = zig._replace(command=(*zig.command, "-target", target, model, *UNOPTIMISED))
    monkeypatch.setattr(sys, "platform", platform)
    flags = compiler.flags(there, 4)
    monkeypatch.undo()
    monkeypatch.setattr(compiler, "flags", lambda *_: flags)
    for part in compiled.PARTS:
        key = f"{there.command} {compiled._key(there, part, np.dtype(np.float32))}"
        assert host_compiler.kept(key, partial(compiler.run, there, part, 4)).read_bytes().startswith(begins)


@pytest.mark.parametrize("head", ["NumPy's", "asked of NumPy"])
def test_an_arrays_address_is_where_numpy_says(head, monkeypatch):
    if head == "NumPy's":
        assert compiled.HEAD
    else:
        monkeypatch.setattr(compiled, "HEAD", 0)
    x = np.arange(24.0).reshape(2, 3, 4)
    read_only = x[1:]
    read_only.flags.writeable = False
    for view in (x, x[1], x[:, ::-1], x[..., 3], read_only, x[2:], np.array(1.0), np.zeros(0, np.float32)):
        assert compiled.address(view) == view.__array_interface__["data"][0]
