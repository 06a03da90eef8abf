#!/usr/bin/env bash
# Packs this project's packages for a GPU box that has no network: resolved and installed here, compressed, and cut into
# parts small enough to be carried one at a time.
#
#   bash infra/pack_airgap.sh HOST.txt OUT_DIR
#
# HOST.txt is the box's `pip freeze`: what it has is pinned and left out (a line with a bare name: left out whatever its
# version). OUT_DIR gets site.part.0, site.part.1, …, which on the box become a folder for PYTHONPATH:
#
#   cat site.part.* | python3 -c "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|xz').extractall('site')"
#   python3 -m compileall -q -j 0 site    # else each engine compiles vLLM's modules at its start where none are written
#
# PYTHON_VERSION (3.12), PLATFORM (uv's name, x86_64-manylinux_2_39), VLLM (a version; default: the newest that the box's
# torch allows), EXTRAS (gpu; gpu,ray for a Ray cluster), PART_BYTES (52000000) and LEAN (a list of packages and files to
# leave out, such as kernels for other GPUs: infra/airgap-hopper.txt) are read from the environment.
set -euo pipefail
host=$(realpath "${1:?usage: pack_airgap.sh HOST.txt OUT_DIR}")
out=$(realpath -m "${2:?usage: pack_airgap.sh HOST.txt OUT_DIR}")
lean=${LEAN:+$(realpath "$LEAN")}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
uv=$(command -v uv || echo .venv/bin/uv)

target=(--python-version "${PYTHON_VERSION:-3.12}" --python-platform "${PLATFORM:-x86_64-manylinux_2_39}")
grep -E '^[A-Za-z0-9._-]+(\[[^]]*\])?==[^+ ]+' "$host" | sed 's/+.*//' >"$work/pins.txt" || true
[ -z "${VLLM:-}" ] || echo "vllm==$VLLM" >>"$work/pins.txt"
mapfile -t extras < <(tr ',' '\n' <<<"${EXTRAS:-gpu}" | sed 's/^/--extra=/')
"$uv" pip compile -q --no-annotate --no-header "${target[@]}" "${extras[@]}" --constraint "$work/pins.txt" pyproject.toml >"$work/all.txt"

normal() { sed -E 's/[ =<>!~;\[@].*//' "$1" | tr 'A-Z_.' 'a-z--' | sort -u; }
normal "$host" >"$work/there.txt"
# oss-harmony is openai-harmony's offline fork, with the same import name: never both.
skip="openai-harmony${lean:+|$(sed -n 's/^skip //p' "$lean" | paste -sd '|')}"
while read -r line; do
  name=$(echo "$line" | sed -E 's/[ =<>!~;\[@].*//' | tr 'A-Z_.' 'a-z--')
  [[ $name =~ ^($skip)$ ]] || grep -qxF -- "$name" "$work/there.txt" || echo "$line"
done <"$work/all.txt" >"$work/need.txt"
echo "packing $(wc -l <"$work/need.txt") packages; $(wc -l <"$work/there.txt") are on the box" >&2
"$uv" pip install -q --target "$work/site" --no-deps --only-binary :all: "${target[@]}" -r "$work/need.txt"
"$uv" pip install -q --target "$work/site" --no-deps . # the project itself, with its hook for vLLM's processes

cd "$work/site"
if [ -n "$lean" ]; then
  # shellcheck disable=SC2046  # the patterns are meant to expand
  rm -rf $(sed -n 's/^drop //p' "$lean")
fi
find . -name __pycache__ -prune -exec rm -rf {} +
mkdir -p "$out"
rm -f "$out"/site.part.*
tar -cf - . | xz -6 -T0 | split -b "${PART_BYTES:-52000000}" -d -a 1 - "$out/site.part."
ls -l "$out"
