"""Scratch: what decides between variants on a GPU. python benchmarks/gpu_trial.py OUT.json"""

import json
import sys
import time
import traceback
from functools import partial

import torch
import triton
import triton.language as tl

from anchorlwf.bench import gpu_measures as measures
from anchorlwf.bench.objectives import make_problem
from anchorlwf.loss import row_kernel, scored_loss
from anchorlwf.loss.inputs import LossInputs
from anchorlwf.loss.products import project, project_back

SIZES = (512, 1024, 50_048)
OUT, FOUND = sys.argv[1], {}
V, DEVICE = 151_936, "cuda" if torch.cuda.is_available() else "cpu"


def save(name, value):
    FOUND[name] = value
    print(name, json.dumps(value), flush=True)
    with open(OUT, "w") as stream:
        json.dump(FOUND, stream, indent=1)


def run_loss(problem, impl="triton", memory=2**30):
    hidden = problem.hidden_ND.clone().requires_grad_()
    given = LossInputs(
        hidden, problem.ref_hidden_ND, problem.head, problem.head, problem.token_ids_N, problem.confidence_N, "forward", memory
    )
    scored_loss(given, impl).divergence_N.sum().backward()


def run_old(problem):
    from anchorlwf.loss.triton_kernels import triton_loss

    hidden = problem.hidden_ND.clone().requires_grad_()
    given = LossInputs(
        hidden, problem.ref_hidden_ND, problem.head, problem.head, problem.token_ids_N, problem.confidence_N, "forward"
    )
    triton_loss(given).divergence_N.sum().backward()


@triton.jit
def _planes(z_ptr, hi_ptr, lo_ptr, stats_ptr, ids_ptr, N, row_step, V, PLANES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * row_step
    own = tl.load(z_ptr + tl.load(ids_ptr + row))
    top = tl.full((BLOCK,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + cols, mask=cols < V, other=-1.0e30)
        new = tl.maximum(top, z)
        total = total * tl.exp(top - new) + tl.exp(z - new)
        top = new
    row_top = tl.max(top, axis=0)
    # Lanes that never saw a number hold exp(0) sums.
    norm = tl.sum(total * tl.exp(top - row_top), axis=0)
    tl.store(stats_ptr + row, row_top)
    tl.store(stats_ptr + N + row, tl.log(norm))
    tl.store(stats_ptr + 2 * N + row, own - row_top)
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + cols, mask=cols < V, other=-1.0e30)
        p = tl.exp(z - row_top) / norm
        hi = p.to(hi_ptr.dtype.element_ty)
        tl.store(hi_ptr + row * row_step + cols, hi, mask=cols < V)
        if PLANES == 2:
            lo = (p - hi.to(tl.float32)).to(hi_ptr.dtype.element_ty)
            tl.store(lo_ptr + row * row_step + cols, lo, mask=cols < V)


def means(hidden, weight, ids, planes, size=512):
    """(mean rows [N, D] float32, log Z [N], log p(token) [N])"""
    count, vocabulary = len(hidden), len(weight)
    z = hidden.new_empty(size, vocabulary, dtype=torch.float32)
    hi = hidden.new_empty(size, vocabulary, dtype=weight.dtype)
    lo = torch.empty_like(hi) if planes == 2 else hi
    out = hidden.new_empty(hidden.shape, dtype=torch.float32)
    stats = hidden.new_empty(3, count, dtype=torch.float32)
    for start in range(0, count, size):
        here = slice(start, min(start + size, count))
        n = here.stop - start
        project(hidden[here], weight, z[:n])
        _planes[(n,)](z, hi, lo, stats[:, here], ids[here], count, vocabulary, vocabulary, PLANES=planes, BLOCK=4096, num_warps=8)
        out[here] = project_back(hi[:n], weight)
        if planes == 2:
            out[here] += project_back(lo[:n], weight)
    top, log_norm, own = stats
    return out, top.double() + log_norm, own - log_norm


def run_summary(problem, summary, planes):
    """Value and gradient by a summary of the reference."""
    g, offset, log_r = summary
    h, ids, c = problem.hidden_ND, problem.token_ids_N, problem.confidence_N.double()
    mean, log_z, log_p = means(h, problem.weight_VD, ids, planes)
    kl = log_z - (g.double() * h).sum(-1) - offset
    r, share, log_p, log_r = log_r.double().exp(), 1 - c, log_p.double(), log_r.double()
    m = c + share * r
    own = torch.where(r > 0, r * (log_r - log_p), 0.0)
    value = share * (kl - own) + torch.xlogy(share, share) * (1 - r) + torch.where(m > 0, m * (m.log() - log_p), 0.0)
    grad = mean.addcmul_(g, share.float()[:, None], value=-1)
    grad -= problem.confidence_N[:, None] * problem.weight_VD[ids]
    return value, grad.to(h.dtype)


def summary_of(problem, planes=2):
    g, log_z, log_r = means(problem.ref_hidden_ND, problem.weight_VD, problem.token_ids_N, planes)
    return g, log_z - (g.double() * problem.ref_hidden_ND).sum(-1), log_r


def summary_errors(moved):
    """Against float64, near the reference and far from it."""
    problem = make_problem(*SIZES, 0.05, 0, dtype="bfloat16", device=DEVICE)
    h = (problem.ref_hidden_ND.float() + moved * torch.randn(*SIZES[:2], device=DEVICE)).bfloat16()
    from dataclasses import replace

    problem = replace(problem, hidden_ND=h)
    wide = [t.double() for t in (h, problem.ref_hidden_ND, problem.weight_VD)]
    results = {}

    def loss(x, r, w, impl):
        from anchorlwf.loss.inputs import Head

        x = x.clone().requires_grad_()
        head = Head(w, None, 1.0, None)
        given = LossInputs(x, r, head, head, problem.token_ids_N, problem.confidence_N, "forward")
        value = scored_loss(given, impl).divergence_N
        value.sum().backward()
        return value.detach().double(), x.grad.double()

    truth = loss(*wide, "dense")
    keep = problem.confidence_N == 0

    def errors(found):
        value, grad = (part.double() for part in found)
        rel = ((grad - truth[1]).norm(dim=1) / truth[1].norm(dim=1))[keep]
        return {
            "value_abs": float((value - truth[0])[keep].abs().max()),
            "value_mean": float((value - truth[0])[keep].abs().mean()),
            "grad_rel_median": float(rel.median()),
            "grad_rel_max": float(rel.max()),
        }

    results["kl"] = float(truth[0][keep].mean())
    results["dense"] = errors(loss(h, problem.ref_hidden_ND, problem.weight_VD, "dense"))
    results["triton"] = errors(loss(h, problem.ref_hidden_ND, problem.weight_VD, "triton"))
    for planes in (1, 2):
        results[f"summary_{planes}"] = errors(run_summary(problem, summary_of(problem), planes))
    return results


def guarded(name, work):
    begin = time.perf_counter()
    try:
        save(name, work())
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        save(name, f"{type(error).__name__}: {error}"[:300])
    print(f"   {time.perf_counter() - begin:.1f} s", flush=True)


def main():
    guarded("summary errors, moved 0.003", partial(summary_errors, 0.003))
    for width, tokens in ((1024, 8192), (4096, 8192)):
        problem = make_problem(tokens, width, V, 0.05, 0, dtype="bfloat16", device=DEVICE)
        tag = f"N {tokens} D {width}"
        guarded(f"{tag} products", lambda p=problem: measures.timed(partial(measures._LOSSES["matmuls"], p)))
        guarded(f"{tag} new", lambda p=problem: measures.timed(partial(run_loss, p)))
        guarded(f"{tag} old", lambda p=problem: measures.timed(partial(run_old, p)))
        for memory in (2**29, 2**31):
            guarded(f"{tag} memory {memory >> 20} MiB", lambda p=problem, m=memory: measures.timed(partial(run_loss, p, memory=m)))
        summary = summary_of(problem)
        for planes in (1, 2):
            guarded(f"{tag} summary {planes}", lambda p=problem, k=planes: measures.timed(partial(run_summary, p, summary, k)))
        if width == 1024:
            for block, warps in ((2048, 4), (2048, 8), (4096, 16), (8192, 16), (1024, 4), (4096, 4)):
                row_kernel.BLOCK, row_kernel.WARPS = block, warps
                guarded(f"{tag} block {block} warps {warps}", lambda p=problem: measures.timed(partial(run_loss, p)))
            row_kernel.BLOCK, row_kernel.WARPS = 4096, 8
        del problem, summary
    for moved in (0.03, 0.3):
        guarded(f"summary errors, moved {moved}", partial(summary_errors, moved))


if __name__ == "__main__":
    main()
