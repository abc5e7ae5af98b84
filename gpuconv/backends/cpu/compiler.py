"""The C compiler: which one there is, what it is told, and one run of it."""

import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent / "native"

# A compiler that takes longer hangs; the slowest that was seen took 20 s, on a core that others used too.
TIMEOUT = 180

# -ffp-contract: a multiply-add rounds once. Nothing else is given up: no sum is reordered but where the
# sources do it themselves, infinities and NaN are what they are.
FLAGS = (
    *("-std=c11", "-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffreestanding", "-fno-stack-protector", "-shared", "-fvisibility=hidden"),
)


class Compiler(NamedTuple):
    """A compiler."""

    name: str  # for people
    command: tuple[str, ...]
    identity: str  # what changes when it is another compiler, or another version of it
    is_zig: bool


def find() -> Compiler | None:
    """Return GPUCONV_CC's compiler, or that of the extra `fast`; None where there is none.

    Raises
    ------
    OSError
        Where GPUCONV_CC names a program that isn't there.
    """
    asked = os.environ.get("GPUCONV_CC")
    if asked is None:
        return _zig()
    words = shlex.split(asked, posix=sys.platform != "win32")
    if not words:
        return None
    program = shutil.which(words[0].strip('"'))
    if program is None:
        raise FileNotFoundError(f"GPUCONV_CC is {asked!r}, but there is no program {words[0]!r}")
    state = os.stat(program)
    identity = f"{asked} {program} {state.st_size} {state.st_mtime_ns}"
    return Compiler(asked, (program, *words[1:]), identity, False)


def _zig() -> Compiler | None:
    try:
        found = importlib.util.find_spec("ziglang")
    except ValueError:  # something called so that was never imported from anywhere
        return None
    if found is None or not found.origin:  # or a folder that an uninstall left behind
        return None
    # The program itself: sys.executable need be no Python where Python is part of another program.
    package = Path(found.origin).parent
    program = package / ("zig.exe" if sys.platform == "win32" else "zig")
    if not program.is_file():
        raise FileNotFoundError(f"the package ziglang has no {program}: install it again")
    # What importlib.metadata would say, whose import takes 50 ms.
    named = sorted(folder.name for folder in package.parent.glob("ziglang-*.dist-info"))
    version = named[-1].removeprefix("ziglang-").removesuffix(".dist-info") if named else ""
    identity = f"zig {version} {program.stat().st_size}"
    return Compiler(f"zig {version}".strip(), (str(program), "cc"), identity, True)


def flags(compiler: Compiler, number_bytes: int) -> list[str]:
    """Return what the compiler is told, but for the files: numbers of so many bytes, this machine's vectors.

    The library needs no other, so that it loads under any C library; only Linux has run it.
    """
    own = {word[:2] for word in compiler.command[1:]}  # which say otherwise: a compiler takes the last word
    given = [flag for flag in FLAGS if flag[:2] not in own & {"-O", "-g"}]
    given.append(f"-DNUMBER_BYTES={number_bytes}")
    if not any(word.startswith(("-march=", "-mcpu=")) for word in compiler.command):
        arm = platform.machine().lower() in ("aarch64", "arm64")
        given.append("-mcpu=native" if arm else "-march=native")
    if sys.platform == "win32":
        # Zig would first compile a C library for minutes; what checks the stack is in compiler-rt.
        return [*given, "-nostdlib", "-rtlib=compiler-rt", "-DOWN_ENTRY"] if compiler.is_zig else given
    return [*given, "-fPIC"] if sys.platform == "darwin" else [*given, "-fPIC", "-nostdlib"]


def run(compiler: Compiler, part: str, number_bytes: int, out: Path) -> None:
    """Compile a part of the sources to a library `out`, in a folder of its own.

    Raises
    ------
    OSError
        Where the compiler fails, writes nothing or takes too long: what it said.
    KeyboardInterrupt
        Where Ctrl-C ended it, in whatever thread this is.
    """
    # Zig keeps what it compiles, beside the sources unless told: nothing that we would use again.
    caches = {"ZIG_LOCAL_CACHE_DIR": str(out.parent), "ZIG_GLOBAL_CACHE_DIR": str(out.parent)}
    said = out.with_suffix(".txt")  # no pipe: a compiler's own processes may hold it open when it is killed
    with said.open("wb") as file:
        try:
            code = subprocess.run(
                [
                    *compiler.command,
                    *flags(compiler, number_bytes),
                    "-o",
                    str(out),
                    str(SOURCES / f"{part}.c"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **caches},
                timeout=TIMEOUT,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler.name} didn't end within {TIMEOUT} s") from None
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        lines = said.read_text(errors="replace").splitlines() or [f"exit status {code}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise OSError(f"{compiler.name} failed: {first.strip()[:300]}")
    if not out.is_file() or not out.stat().st_size:
        raise OSError(f"{compiler.name} wrote no library")


def processor() -> str:
    """Return what tells processors apart: a folder may be shared by machines whose vectors differ."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = []
            for line in file:  # the first processor's: there may be hundreds, each made up as it is read
                if not line.strip():
                    break
                lines.append(line)
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    named = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU ", "isa")
    return platform.machine() + "".join(line for line in lines if line.startswith(named))
