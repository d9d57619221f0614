#!/bin/bash
# Scratch. bash benchmarks/gpu_trial.sh OUT_FOLDER: everything once on a GPU; each part bounded, each file written early.
out=${1:?folder}
mkdir -p "$out"
export PYTHONPATH="src:$PYTHONPATH" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
begin=$SECONDS
timeout 130 python -u -m anchorlwf bench --gpu --seconds 90 --out "$out/gpu.json" >"$out/table.md" 2>"$out/bench.log"
echo "bench rc $? after $((SECONDS - begin)) s"
timeout 60 python -u benchmarks/gpu_trial.py "$out/trial.json" >"$out/trial.log" 2>&1
echo "trial rc $? after $((SECONDS - begin)) s"
bare=$(python -c "import hypothesis" 2>/dev/null || echo --noconftest)
timeout "${TEST_SECONDS:-80}" python -u -m pytest -q --maxfail=20 --tb=short -p no:cacheprovider $bare tests/gpu >"$out/pytest.log" 2>&1
echo "tests rc $? after $((SECONDS - begin)) s"
cat "$out/table.md"
tail -5 "$out/bench.log"
grep -v "^   " "$out/trial.log" | cut -c1-160
tail -15 "$out/pytest.log"
