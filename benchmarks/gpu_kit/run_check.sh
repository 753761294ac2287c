#!/usr/bin/env bash
# On the machine with the card, in the repository's root; SECONDS_AT_MOST counts from here, the same line goes on later:
#
#   bash benchmarks/gpu_kit/run_check.sh [SECONDS_AT_MOST] [what else gpu_check.py takes]
#
# Unpacks .kit/kit-?.tar.xz (make_kit.sh) once and runs gpu_check.py. Results, logs and the dated JSON go to $OUT, where it is set.
set -uo pipefail
cd "$(dirname "$0")/../.."
most=${1:-560}; shift || true
site=$PWD/outputs/gpu_site runs=$PWD/outputs/gpu_check
export PYTHONPATH=$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
  UNSLOTH_DISABLE_STATISTICS=1 UNSLOTH_ENABLE_LOGGING=1 TOKENIZERS_PARALLELISM=false

if [ ! -f "$site/.unpacked" ]; then
  mkdir -p "$site"
  for kit in .kit/kit-?.tar.xz; do python3 -m tarfile --filter data -e "$kit" "$site" & done; wait
  python3 -m compileall -q -j 0 "$site" > /dev/null 2>&1 &
  touch "$site/.unpacked"
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
python3 benchmarks/gpu_check.py --seconds $((most - SECONDS)) --outputs "$runs" "$@"
if [ -n "${OUT:-}" ]; then
  cp "$runs/results.jsonl" benchmarks/results/gpu_check-gpu-*.json "$OUT" 2> /dev/null
  tar -czf "$OUT/logs.tar.gz" -C "$runs" $(cd "$runs" && find . -maxdepth 2 \( -name '*.log' -o -name '*.out' -o -name 'metrics.jsonl' \))
fi
