#!/usr/bin/env bash
# Proves the CUDA kernels on this machine's GPU, without network, in under eight minutes: tools/gpu_check/__main__.py.
#   tools/gpu_check.sh [--out DIR] [--dry-run] [--only PART...]        PYTHON=python3.12 tools/gpu_check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m tools.gpu_check "$@"
