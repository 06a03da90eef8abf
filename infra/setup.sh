#!/usr/bin/env bash
# Makes .venv and installs the project, with the build of vLLM that fits the machine. Quick when nothing has changed.
#
#   bash infra/setup.sh [EXTRA ...]        extras of pyproject.toml besides gpu/cpu, such as: demo dev
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v python3)}
extras=$(IFS=,; echo "$*")

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; set PYTHON" >&2; exit 1; }

if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then device=gpu; else device=cpu; fi

stamp=.venv/installed-$device-${extras//,/-}
wanted=$(cat pyproject.toml infra/overrides-cpu.txt infra/setup.sh | sha256sum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

echo "installing into .venv (the $device build of vLLM): some minutes the first time" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
command -v uv >/dev/null && uv=uv || { .venv/bin/python -m pip install -q uv; uv=.venv/bin/uv; }

# Compiled now: where PYTHONDONTWRITEBYTECODE is set, as in most containers, each engine would compile all of vLLM's and
# PyTorch's modules again at its start.
options=(--quiet --python .venv/bin/python --compile-bytecode)
if [ "$device" = cpu ]; then
  # With PyTorch's own index in reach, its CPU build is smaller; the ordinary registry's build runs too.
  options+=(--overrides infra/overrides-cpu.txt)
fi
UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} "$uv" pip install "${options[@]}" -e ".[$device${extras:+,$extras}]"
echo "$wanted" >"$stamp"
