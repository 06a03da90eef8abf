#!/usr/bin/env bash
# Style, types and tests. Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash infra/setup.sh dev
# aria2: one of the two downloaders; npm: Qwen3's tokenizer comes from its registry; chromium
# and PostgreSQL: Prefect's UI as a team has it.
missing=()
command -v aria2c >/dev/null || missing+=(aria2)
command -v npm >/dev/null || missing+=(npm)
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing+=(postgresql)
if [ ${#missing[@]} -gt 0 ]; then
  apt-get -qq update >/dev/null 2>&1 || true
  for package in "${missing[@]}"; do
    apt-get -qq install -y --no-install-recommends "$package" >/dev/null 2>&1 ||
      echo "please install $package (some tests need it)" >&2
  done
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Three at a time, a file each, for they often wait; the files that run engines take longest and go first (tests/conftest.py).
exec .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
