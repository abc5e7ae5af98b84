#!/usr/bin/env bash
# Measures a program's kernels one by one with Nsight Compute: our own, or those within an NVTX range of ours; see
# docs/nsight.md.
set -euo pipefail
recipe=ncu.sh
. "$(dirname "${BASH_SOURCE[0]}")/recording.sh"

usage() {
  cat <<'TEXT'
usage: profiling/ncu.sh [--out NAME] [--kernel REGEX] [--range RANGE] [--set SET] [--skip N] [--count N] [--force]
                        -- PROGRAM [ARGUMENT...]

Writes NAME.ncu-rep, the measurements, and NAME.txt, a summary. The exit status is the program's.

  --out NAME      where to, without a suffix (gpuconv-ncu)
  --kernel REGEX  kernels whose names match (^gpuconv_, which are ours; within a --range all, cuBLAS's too)
  --range RANGE   kernels within NVTX ranges of this name in our domain: 3.conv2d, step,
                  'conv2d x[8,3,32,32] w[16,3,3,3]'; or within those that match, as regex:conv2d.*
  --set SET       what is measured (detailed); `ncu --list-sets` shows which there are
  --skip N        matching launches to leave out first (0)
  --count N       matching launches to measure (50); each is run many times over
  --force         overwrite what is there
TEXT
}

out=gpuconv-ncu kernel='' range='' sections=detailed skip=0 count=50 force=no
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --out) value "$@"; out=$2; shift 2 ;;
    --kernel) value "$@"; kernel=$2; shift 2 ;;
    --range) value "$@"; range=$2; shift 2 ;;
    --set) value "$@"; sections=$2; shift 2 ;;
    --skip) value "$@"; skip=$2; shift 2 ;;
    --count) value "$@"; count=$2; shift 2 ;;
    --force) force=yes; shift ;;
    --) shift; break ;;
    *) fail "unknown option $1; --help shows those that there are" ;;
  esac
done
[ $# -gt 0 ] || fail "no program is given; it stands behind --"
for each in "$skip" "$count"; do
  [[ $each =~ ^[0-9]+$ ]] || fail "--skip and --count must be numbers, not '$each'"
done
command -v ncu >/dev/null || fail "ncu is not there: install Nsight Compute (NVIDIA's package nsight-compute)"

filter=()
case $range in
  "") kernel=${kernel:-^gpuconv_} ;;
  regex:*) filter=(--nvtx --nvtx-include "regex:gpuconv@${range#regex:}/") ;;
  # The slash at the end says that a range is of the kind that nests; what means something to ncu is escaped.
  *)
    # shellcheck disable=SC2001  # bash itself can't name what it replaces, before 5.2
    filter=(--nvtx --nvtx-include "gpuconv@$(sed 's|[]@,[/*+]|\\&|g' <<<"$range")/")
    ;;
esac
[ -z "$kernel" ] || filter+=(--kernel-name "regex:$kernel")

make_room "$force" "$out.ncu-rep" "$out.txt"
record ncu --target-processes all --set "$sections" "${filter[@]}" --launch-skip "$skip" --launch-count "$count" \
  --export "$out" -- "$@"

if [ ! -s "$out.ncu-rep" ]; then
  say "ncu wrote no report: did a kernel match? ERR_NVGPUCTRPERM above means that counters need root on this machine"
  exit "$((status ? status : 1))"
fi
trap 'rm -f "$out.txt.part"' EXIT
if ncu --import "$out.ncu-rep" --page details --print-summary per-kernel >"$out.txt.part" 2>&1; then
  mv "$out.txt.part" "$out.txt"
  say "recorded $out.ncu-rep; a summary is in $out.txt"
else
  say "recorded $out.ncu-rep; this ncu can't summarise it: Nsight Compute on another machine opens it"
fi
exit "$status"
