#!/usr/bin/env bash
# Records a program's time line with Nsight Systems and prints its summaries by our NVTX ranges; see docs/nsight.md.
set -euo pipefail
recipe=nsys.sh
. "$(dirname "${BASH_SOURCE[0]}")/recording.sh"

usage() {
  cat <<'TEXT'
usage: profiling/nsys.sh [--out NAME] [--range RANGE[:TIMES]] [--force] -- PROGRAM [ARGUMENT...]

Writes NAME.nsys-rep, the time line, and NAME.txt, its summaries. The exit status is the program's.

  --out NAME     where to, without a suffix (gpuconv-nsys)
  --range RANGE  what to record:
                 whole     everything (the default)
                 profiler  what the program runs within `with cupyx.profiler.profile():`
                 others    the first NVTX range of this name in our domain: epoch, step, 3.conv2d, ...
                 With :TIMES, as many of them, a report each; the summary is the last one's. The first step
                 compiles kernels: --range step:3 shows a warm one.
  --force        overwrite what is there
TEXT
}

out=gpuconv-nsys range=whole force=no
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --out) value "$@"; out=$2; shift 2 ;;
    --range) value "$@"; range=$2; shift 2 ;;
    --force) force=yes; shift ;;
    --) shift; break ;;
    *) fail "unknown option $1; --help shows those that there are" ;;
  esac
done
[ $# -gt 0 ] || fail "no program is given; it stands behind --"
command -v nsys >/dev/null || fail "nsys is not there: install Nsight Systems (NVIDIA's package nsight-systems-cli)"

times=
if [[ $range =~ ^(.*[^:]):([0-9]+)$ ]]; then
  range=${BASH_REMATCH[1]} times=${BASH_REMATCH[2]}
fi
end=stop
[ -z "$times" ] || end=repeat:$times
capture=()
case $range in
  whole) [ -z "$times" ] || fail "--range whole can't be repeated" ;;
  profiler) capture=(--capture-range=cudaProfilerApi "--capture-range-end=$end") ;;
  "" | *@*) fail "--range must be whole, profiler, or a range's name without its domain, not '$range'" ;;
  # nsys heeds registered strings alone there, unless told otherwise; ours are registered.
  *) capture=(--capture-range=nvtx "--nvtx-capture=$range@gpuconv" "--capture-range-end=$end") ;;
esac

shopt -s nullglob
reports() { printf '%s\n' "$out".nsys-rep "$out".[0-9]*.nsys-rep "$out"[0-9]*.nsys-rep | sort -Vu; }
older=("$out".[0-9]*.nsys-rep "$out"[0-9]*.nsys-rep)
make_room "$force" "$out.nsys-rep" "$out.qdstrm" "$out.sqlite" "$out.txt" "${older[@]}"

# No sampling of the CPU: it needs rights that many machines don't give, and Python's stacks say little.
record nsys profile --trace=cuda,nvtx,cublas,osrt --sample=none --cpuctxsw=none "${capture[@]}" --output="$out" -- "$@"

report=
while IFS= read -r each; do [ ! -s "$each" ] || report=$each; done < <(reports)
if [ -z "$report" ]; then
  if [ -s "$out.qdstrm" ]; then
    say "recorded $out.qdstrm, as this nsys has no importer: Nsight Systems on another machine opens it"
    exit "$status"
  fi
  say "nsys wrote no report; did the range '$range' begin, and end before the program did?"
  exit "$((status ? status : 1))"
fi

# Which question each answers: docs/nsight.md.
summaries=(
  nvtx_gpu_proj_sum nvtx_kern_sum:base cuda_gpu_kern_sum:nvtx-name:base cuda_gpu_mem_time_sum nvtx_sum cuda_api_sum
)
trap 'rm -f "$out.txt.part"' EXIT
: >"$out.txt.part"
found=no
for each in "${summaries[@]}"; do
  if text=$(nsys stats --force-export=true --sqlite="$out.sqlite" --report="$each" "$report" 2>&1); then
    printf '%s\n\n' "$text" >>"$out.txt.part"
    found=yes
  else
    printf '%s: this nsys gives no such summary\n\n' "$each" >>"$out.txt.part"
  fi
done
if [ $found = yes ]; then
  mv "$out.txt.part" "$out.txt"
  say "recorded $report; summaries are in $out.txt"
else
  say "recorded $report; this nsys gives no summaries: Nsight Systems on another machine opens it"
fi
exit "$status"
