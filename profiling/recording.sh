# What nsys.sh and ncu.sh have in common; they source it. $recipe is the script's name.

fail() {
  printf '%s: %s\n' "$recipe" "$*" >&2
  exit 2
}

say() { printf '%s: %s\n' "$recipe" "$*" >&2; }

# value OPTION ARGUMENTS...: fails where the option is the last argument.
value() { [ $# -ge 2 ] || fail "$1 takes a value"; }

# make_room FORCE FILE...: fails where a file of an earlier recording is there and may not go.
make_room() {
  local force=$1 file
  shift
  [ -d "$(dirname "$1")" ] || fail "there is no folder $(dirname "$1")"
  for file in "$@"; do
    [ -e "$file" ] || continue
    [ "$force" = yes ] || fail "$file is there already: give another --out, or --force"
    rm -f "$file"
  done
}

# record TOOL ARGUMENTS... -- PROGRAM...: runs the program under the tool and sets $status, the program's own exit
# status, which the tools don't always pass on; where it never ran, the tool's.
record() {
  local command=() scratch
  while [ "$1" != -- ]; do
    command+=("$1")
    shift
  done
  shift
  scratch=$(mktemp -d)
  status=0
  # shellcheck disable=SC2016  # expanded by the inner shell
  "${command[@]}" sh -c '"$@"; status=$?; echo "$status" >"$0"; exit "$status"' "$scratch/status" "$@" || status=$?
  [ ! -s "$scratch/status" ] || status=$(cat "$scratch/status")
  rm -rf "$scratch"
}
