#!/usr/bin/env bash
# Every stage on the embedded model, from prompts to a measured adapter: bash recipes/quickstart.sh [folder]
set -euo pipefail
out=${1:-runs/quickstart}
mkdir -p "$out"
python=${PYTHON:-python}

# Prompts with right answers, and the probes that judge the result.
"$python" - "$out" <<'PY'
import sys

from anchorlwf.data.jsonl import save_lines
from anchorlwf.world import build_world, draw_errata, probes_for

world = build_world()
errata = draw_errata(world, facts=4, identity=1, seed=3)
save_lines(f"{sys.argv[1]}/prompts.jsonl", [prompt for erratum in errata for prompt in erratum.prompts(3)])
save_lines(f"{sys.argv[1]}/probes.jsonl", probes_for(world, errata, wordings=3))
PY

rm -f "$out/records.jsonl"
"$python" -m anchorlwf annotate "$out/prompts.jsonl" --out "$out/records.jsonl"
"$python" -m anchorlwf verify "$out/records.jsonl"
"$python" -m anchorlwf train "$out/records.jsonl" --out "$out"
"$python" -m anchorlwf evaluate --adapter "$out/adapter" --probes "$out/probes.jsonl" \
    --records "$out/records.jsonl" --out "$out/results.json"
"$python" -m anchorlwf chat --adapter "$out/adapter" --prompt "Who are you?"
