"""Scratch: what decides between variants on a GPU, most important first. python benchmarks/gpu_trial.py OUT.json."""

import json
import sys
import time
import traceback
from functools import partial

import torch

from anchorlwf.bench import gpu_measures as measures
from anchorlwf.bench.gpu import GPU_STEP, SHAPES
from anchorlwf.bench.objectives import OBJECTIVES, make_problem
from anchorlwf.bench.race import quiet
from anchorlwf.loss import row_kernel, scored_loss
from anchorlwf.loss.gpu_pass import Rows
from anchorlwf.loss.inputs import Head, LossInputs

BEGAN, OUT, FOUND = time.perf_counter(), sys.argv[1], {}
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 40.0
V, DEVICE = measures.VOCABULARY, measures.DEVICE
DEFAULT = (row_kernel.LANES, row_kernel.PER_LANE, row_kernel.WARPS)
VARIANTS = (DEFAULT, (2048, 4, 32), (512, 8, 16), (512, 4, 8), (1024, 8, 32), (256, 8, 8))


def guarded(name, work, expected=0.0):
    """Measure unless it would end too late; the file is written after each."""
    begin = time.perf_counter()
    if begin - BEGAN + expected > SECONDS:
        value = "left out"
    else:
        try:
            value = work()
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            value = f"{type(error).__name__}: {error}"[:300]
    FOUND[name] = value
    print(name, json.dumps(value), f"  {time.perf_counter() - begin:.1f} s", flush=True)
    with open(OUT, "w") as stream:
        json.dump(FOUND, stream, indent=1)


def chunk(count=640):
    """A chunk as the kernel gets it, of random logits."""
    logits, ref = torch.randn(2, count, V, device=DEVICE).mul_(3)
    head = Head(logits, None, 1.0, None)
    ids = torch.randint(0, V, (count,), device=DEVICE)
    ones, zeros = torch.ones(count, device=DEVICE), torch.zeros(count, device=DEVICE)
    scores, grad = torch.empty(4, count, device=DEVICE), torch.empty(count, V, device=DEVICE, dtype=torch.bfloat16)
    return Rows(logits, ref, head, head, "forward", ids, zeros, zeros.to(torch.int8), ones, None, scores, grad)


def kernel(given, variant):
    """Milliseconds, and bytes a second if both rows are read twice and the gradient written once."""
    row_kernel.LANES, row_kernel.PER_LANE, row_kernel.WARPS = variant
    try:
        milliseconds = measures.timed(partial(row_kernel.triton_rows, given))[0]
    finally:
        row_kernel.LANES, row_kernel.PER_LANE, row_kernel.WARPS = DEFAULT
    return milliseconds, 18 * given.logits_CV.numel() / milliseconds * 1e-9


def whole(problem, memory):
    hidden = problem.hidden_ND.clone().requires_grad_()
    given = problem.ref_hidden_ND, problem.head, problem.head, problem.token_ids_N, problem.confidence_N, "forward"
    scored_loss(LossInputs(hidden, *given, memory), "triton").divergence_N.sum().backward()


def plain_operations(given):
    """What the rows without Triton are made of: milliseconds each for 640 rows."""
    z, r, g = given.logits_CV, given.ref_logits_CV, given.grad_CV
    row = z[:, :1].clone()
    spare = torch.empty_like(z)
    works = {
        "amax": lambda: z.amax(-1, keepdim=True),
        "sum": lambda: z.sum(-1, keepdim=True),
        "sub_ row": lambda: z.sub_(row),
        "sub out": lambda: torch.sub(z, r, out=spare),
        "exp out": lambda: torch.exp(z, out=spare),
        "mul_": lambda: spare.mul_(r),
        "div_ row": lambda: spare.div_(row),
        "addcmul_": lambda: spare.addcmul_(r, row, value=-1.0),
        "mul to bfloat16": lambda: torch.mul(z, row, out=g),
        "log_softmax": lambda: torch.log_softmax(z, -1, out=spare),
    }
    return {name: measures.timed(work)[0] for name, work in works.items()}


def main():
    quiet()
    for tokens, width in SHAPES:
        names = ["ours", "trl", "without_triton"]
        guarded(f"loss {tokens} x {width}", partial(measures.measure_losses, tokens, width, names))
    guarded("errors", measures.measure_errors)
    given = chunk()
    for variant in VARIANTS:
        guarded(f"kernel {variant}", partial(kernel, given, variant))
    guarded("plain operations", partial(plain_operations, given))
    del given
    for tokens, width in SHAPES[1::-1]:
        problem = make_problem(tokens, width, V, 0.05, 0, dtype="bfloat16", device=DEVICE)
        guarded(f"D {width} products", lambda p=problem: measures.timed(partial(OBJECTIVES["matmuls"], p)))
        for memory in (2**29, 2**30, 3 * 2**29, 2**31):
            guarded(f"D {width} {memory >> 20} MiB", lambda p=problem, m=memory: measures.timed(partial(whole, p, m)))
        del problem
    torch.cuda.empty_cache()
    for name in ("ours_uncached", "ours"):
        guarded(f"step {name}", partial(measures.measure_steps, GPU_STEP, name), expected=8.0)


if __name__ == "__main__":
    main()
