#!/usr/bin/env bash
# Proves the CUDA kernels on this machine's GPU, without network, in seven minutes: tools/gpu_check/README.md.
#   tools/gpu_check.sh [--out DIR] [--commit TEXT] [--dry-run] [--only PART...] [--only-failed]
#   PYTHON=python3.12 tools/gpu_check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m tools.gpu_check "$@"
