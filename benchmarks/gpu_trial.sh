#!/bin/bash
# Scratch. bash benchmarks/gpu_trial.sh OUT_FOLDER [SECONDS]: variants once on a GPU; the file is written after each.
out=${1:?folder}
mkdir -p "$out"
export PYTHONPATH="src:$PYTHONPATH" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
timeout $((${2:-40} + 15)) python -u benchmarks/gpu_trial.py "$out/trial.json" "${2:-40}" >"$out/trial.log" 2>&1
echo "trial rc $?"
grep -v -i warn "$out/trial.log" | cut -c1-1500
