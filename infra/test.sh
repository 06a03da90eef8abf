#!/usr/bin/env bash
# Style, types and tests. Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash infra/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
