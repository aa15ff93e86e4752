#!/usr/bin/env bash
# The whole path with LLaDA-8B's widths, as many layers as fit: see benchmarks/large_model.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python benchmarks/large_model.py "$@"
