"""The loss against dense logits, TRL's chunked divergence, a top-4 objective, and the three bare matrix products.

    python benchmarks/loss.py --width 1024 --runs 7 --json docs/results/loss_1024.json        (needs trl)
"""

import argparse
import json

from anchorlwf.bench.loss import LossSetup, compare_losses, loss_table
from anchorlwf.files import write_atomic


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = LossSetup()
    parser.add_argument("--tokens", type=int, default=default.tokens, help="N")
    parser.add_argument("--width", type=int, default=default.width, help="D")
    parser.add_argument("--vocabulary", type=int, default=default.vocabulary, help="V")
    parser.add_argument("--anchors", type=float, default=default.anchors, help="share of the tokens")
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", help="write everything that was measured to this file")
    options = parser.parse_args()
    setup = LossSetup(options.tokens, options.width, options.vocabulary, options.anchors, options.threads)
    results = compare_losses(setup, runs=options.runs)
    print(loss_table(results))
    if options.json:
        write_atomic(options.json, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
