#!/usr/bin/env bash
# The whole thing on a small real model and a small real dataset, from nothing: installs, gets the model, generates.
# Arguments are passed on, such as --sampling.temperature 0.2
set -euo pipefail
cd "$(dirname "$0")/.."
bash infra/setup.sh demo
.venv/bin/python infra/demo_model.py models/SmolLM2-135M-Instruct
exec .venv/bin/python flows/generate.py --config deployments/demo.yaml "$@"
