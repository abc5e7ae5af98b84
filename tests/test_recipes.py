"""profiling/nsys.sh and ncu.sh, with tools that only note what they are asked for and run the program."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

PROFILING = Path(__file__).parents[1] / "profiling"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")

# A program that shows its arguments, one a line, and ends with 3.
PROGRAM = (sys.executable, "-c", "import sys; print(*sys.argv[1:], sep='\\n'); sys.exit(3)")

NSYS = """
    #!/bin/bash
    printf '%s\\n' call "$@" >>"$CALLS"
    output=gone
    if [ "$1" = stats ]; then
      [ "${NSYS_IS:-}" != "without importer" ] || exit 1
      case "$*" in *cuda_api_sum*) exit 1 ;; esac
      echo "summary of ${@: -1}"
      exit
    fi
    while [ "$1" != sh ]; do
      case $1 in --output=*) output=${1#--output=} ;; --capture-range-end=repeat:*) repeat=${1##*:} ;; esac
      shift
    done
    "$@"
    case ${NSYS_IS:-whole} in
      whole) if [ -n "${repeat:-}" ]; then
               for i in $(seq "$repeat"); do echo "$i" >"$output.$i.nsys-rep"; done
             else echo report >"$output.nsys-rep"; fi ;;
      "without importer") echo report >"$output.qdstrm" ;;
    esac
"""
NCU = """
    #!/bin/bash
    printf '%s\\n' call "$@" >>"$CALLS"
    if [ "$1" = --import ]; then
      [ -z "${NCU_IS:-}" ] || exit 1
      echo "summary of $2"
      exit
    fi
    while [ "$1" != sh ]; do
      [ "$1" != --export ] || output=$2
      shift
    done
    "$@"
    [ "${NCU_IS:-}" = "without matches" ] || echo report >"$output.ncu-rep"
"""


@pytest.fixture
def recipe(tmp_path):
    """Run a recipe in an empty folder of its own, where the tools are those above; return what came of it."""
    tools, folder = tmp_path / "tools", tmp_path / "a folder"
    tools.mkdir()
    folder.mkdir()
    for name, text in (("nsys", NSYS), ("ncu", NCU)):
        (tools / name).write_text(dedent(text).lstrip())
        (tools / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(script, *arguments, program=PROGRAM, missing=False, **environment):
        calls.unlink(missing_ok=True)
        path = _without_tools(tmp_path) if missing else f"{tools}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", str(PROFILING / script), *arguments, *(("--", *program) if program else ())]
        environment = {**os.environ, "PATH": path, "CALLS": str(calls), **environment}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        done.calls = (
            [call.splitlines() for call in calls.read_text().split("call\n")[1:]] if calls.exists() else []
        )
        done.files = sorted(path.name for path in folder.iterdir())
        done.folder = folder
        return done

    return run


def _without_tools(tmp_path):
    """Return a PATH with what the recipes need of the system, and neither tool."""
    few = tmp_path / "few"
    few.mkdir()
    for name in ("bash", "cat", "dirname", "mktemp", "rm", "sed", "sh", "sort"):
        (few / name).symlink_to(shutil.which(name))
    return str(few)


RECIPES = [("nsys.sh", "nsys", "gpuconv-nsys.nsys-rep"), ("ncu.sh", "ncu", "gpuconv-ncu.ncu-rep")]
each_recipe = pytest.mark.parametrize("script, tool, report", RECIPES)


@each_recipe
def test_the_program_gets_its_arguments_as_they_are_and_its_status_is_passed_on(recipe, script, tool, report):
    awkward = ("two words", "", "$HOME", "it's", '"', "*", "--", "--out")
    done = recipe(script, program=(*PROGRAM, *awkward))
    assert done.stdout.split("\n")[: len(awkward)] == list(awkward)
    assert done.returncode == 3
    assert done.files == [report, report.partition(".")[0] + ".txt"]


@each_recipe
def test_a_program_that_a_signal_ends_has_the_shells_status(recipe, script, tool, report):
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert recipe(script, program=killed).returncode == 128 + 9


@each_recipe
def test_a_missing_tool_is_named_with_what_to_install_in_one_line(recipe, script, tool, report):
    done = recipe(script, missing=True)
    assert done.returncode == 2
    assert not done.stdout and done.stderr.startswith(f"{script}: {tool} is not there: install Nsight ")
    assert done.stderr.count("\n") == 1


@each_recipe
def test_an_earlier_recording_is_kept_unless_told_otherwise(recipe, script, tool, report):
    recipe(script)
    first = recipe(script).folder / report
    first.write_text("the first")
    done = recipe(script)
    assert (done.returncode, done.calls) == (2, [])
    assert f"{report} is there already" in done.stderr
    assert first.read_text() == "the first"
    assert recipe(script, "--force").returncode == 3
    assert first.read_text() == "report\n"


@each_recipe
def test_out_says_where_to_also_in_a_folder_with_a_space(recipe, script, tool, report):
    done = recipe(script, "--out", "../a folder/my own")
    suffix = report.partition(".")[2]
    assert done.files == [f"my own.{suffix}", "my own.txt"]
    done = recipe(script, "--out", "nowhere/x")
    assert (done.returncode, done.calls) == (2, []) and "there is no folder nowhere" in done.stderr


@each_recipe
@pytest.mark.parametrize(
    "arguments, program, message",
    [
        (("--frob",), PROGRAM, "unknown option --frob"),
        (("--out",), (), "--out takes a value"),
        ((), (), "no program is given"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    recipe, script, tool, report, arguments, program, message
):
    done = recipe(script, *arguments, program=program)
    assert (done.returncode, done.calls, done.files) == (2, [], [])
    assert message in done.stderr


@each_recipe
def test_help_shows_every_option(recipe, script, tool, report):
    done = recipe(script, "--help", program=())
    text = (PROFILING / script).read_text()
    options = {word for word in text.split() if word.startswith("--") and word.endswith(")")}
    assert done.returncode == 0 and len(options) > 3
    assert all(option.rstrip(")") in done.stdout for option in options)


@pytest.mark.parametrize(
    "chosen, capture",
    [
        ("whole", []),
        ("profiler", ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]),
        ("step", ["--capture-range=nvtx", "--nvtx-capture=step@gpuconv", "--capture-range-end=stop"]),
        (
            "3.conv2d:2",
            ["--capture-range=nvtx", "--nvtx-capture=3.conv2d@gpuconv", "--capture-range-end=repeat:2"],
        ),
    ],
)
def test_nsys_is_asked_for_the_traces_of_a_range(recipe, chosen, capture):
    done = recipe("nsys.sh", "--range", chosen, "--out", "my own")
    asked = done.calls[0][: done.calls[0].index("sh")]
    traces = ["--trace=cuda,nvtx,cublas,osrt", "--sample=none", "--cpuctxsw=none"]
    assert asked == ["profile", *traces, *capture, "--output=my own"]


@pytest.mark.parametrize("chosen", ["step@gpuconv", "", "whole:2"])
def test_nsys_ranges_that_can_not_be_are_refused(recipe, chosen):
    done = recipe("nsys.sh", "--range", chosen)
    assert (done.returncode, done.calls) == (2, []) and "--range" in done.stderr


def test_nsys_summaries_are_kept_and_those_that_it_lacks_are_named(recipe):
    done = recipe("nsys.sh")
    text = (done.folder / "gpuconv-nsys.txt").read_text()
    assert text.count("summary of gpuconv-nsys.nsys-rep") == len(done.calls) - 2 == 5
    assert "cuda_api_sum: this nsys gives no such summary" in text
    assert all("--force-export=true" in call for call in done.calls[1:])


def test_nsys_of_a_repeated_range_sums_up_the_last_recording(recipe):
    done = recipe("nsys.sh", "--range", "step:11")
    assert len(done.files) == 12
    assert "summary of gpuconv-nsys.11.nsys-rep" in (done.folder / "gpuconv-nsys.txt").read_text()
    assert recipe("nsys.sh").returncode == 2
    assert len(recipe("nsys.sh", "--force").files) == 2


def test_nsys_without_its_importer_only_records_and_says_what_opens_it(recipe):
    done = recipe("nsys.sh", NSYS_IS="without importer")
    assert (done.returncode, done.files) == (3, ["gpuconv-nsys.qdstrm"])
    assert "recorded gpuconv-nsys.qdstrm" in done.stderr and "another machine" in done.stderr


def test_nsys_that_wrote_nothing_is_an_error_even_if_the_program_went_well(recipe):
    done = recipe("nsys.sh", "--range", "stepp", program=("true",), NSYS_IS="silent")
    assert (done.returncode, done.files) == (1, [])
    assert "did the range 'stepp' begin" in done.stderr


@pytest.mark.parametrize(
    "options, filters",
    [
        ((), ["--kernel-name", "regex:^gpuconv_"]),
        (("--kernel", "gemm|im2col"), ["--kernel-name", "regex:gemm|im2col"]),
        (("--range", "3.conv2d backward"), ["--nvtx", "--nvtx-include", "gpuconv@3.conv2d backward/"]),
        (("--range", "conv2d x[8,3]"), ["--nvtx", "--nvtx-include", r"gpuconv@conv2d x\[8\,3\]/"]),
        (
            ("--range", "regex:conv2d.*", "--kernel", "."),
            ["--nvtx", "--nvtx-include", "regex:gpuconv@conv2d.*/", "--kernel-name", "regex:."],
        ),
    ],
)
def test_ncu_is_asked_for_kernels_by_their_names_or_by_ranges(recipe, options, filters):
    done = recipe("ncu.sh", *options, "--skip", "4", "--count", "2", "--set", "full")
    asked = done.calls[0][: done.calls[0].index("sh")]
    what = ["--target-processes", "all", "--set", "full"]
    assert asked == [*what, *filters, "--launch-skip", "4", "--launch-count", "2", "--export", "gpuconv-ncu"]


def test_ncu_counts_must_be_numbers(recipe):
    done = recipe("ncu.sh", "--count", "all")
    assert (done.returncode, done.calls) == (2, []) and "not 'all'" in done.stderr


def test_ncu_without_a_matching_kernel_is_an_error(recipe):
    done = recipe("ncu.sh", program=("true",), NCU_IS="without matches")
    assert (done.returncode, done.files) == (1, []) and "did a kernel match" in done.stderr


def test_ncu_that_can_not_sum_up_leaves_no_half_file(recipe):
    done = recipe("ncu.sh", NCU_IS="old")
    assert (done.returncode, done.files) == (3, ["gpuconv-ncu.ncu-rep"])
    assert "another machine opens it" in done.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    scripts = ["nsys.sh", "ncu.sh"]
    subprocess.run(["shellcheck", "--external-sources", *scripts], cwd=PROFILING, check=True)
