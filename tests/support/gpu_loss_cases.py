"""Three ways to the same numbers. Run in a process of its own with TRITON_INTERPRET=1, it prints JSON; gpu/ imports it.

The truth is the dense loss in float64; its own error in the narrow type says what can be asked of the kernels.
"""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial

import torch

from anchorlwf.loss import scored_loss
from anchorlwf.loss.gpu_pass import GpuPass, plain_rows
from anchorlwf.loss.inputs import Head, LossInputs

DIRECTIONS = ("forward", "reverse")
CONFIDENCES = [0.0, 0.5, 0.0, 0.999, 0.1, 0.0, 1.0]


def case(
    direction,
    options,
    bias,
    own_reference,
    dtype,
    size,
    *,
    shape=(7, 70, 20),
    device="cpu",
    out=(),
    impl="triton",
    trains=False,
    memory=None,
    mixed=False,
):
    """[the narrow dense loss's error, the kernel's error], as shares of the largest value or gradient.

    `out`: which heads exclude tokens (model, reference): the last block of at most 128, a standing one and every fifth.
    `trains`: the head does. `memory`: the loss's bound, for a few chunks. `mixed`: hidden states are float32.
    """
    generator = torch.Generator().manual_seed(0)
    count, vocabulary, width = shape

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, ref_hidden = draw(count, width) * size, draw(count, width + 4 * own_reference) * size
    weight, ref_weight = draw(vocabulary, width), draw(vocabulary, width + 4) if own_reference else None
    token_ids = torch.randint(0, vocabulary, (count,), generator=generator)
    confidence = torch.tensor(CONFIDENCES).repeat(-(-count // len(CONFIDENCES)))[:count]
    if direction == "reverse":
        confidence = confidence.clamp(max=0.999)
    token_ids, confidence, share = token_ids.to(device), confidence.to(device), draw(count).to(device)
    found = []
    # The truth sees what the kernel sees: values that the narrow type can hold.
    inputs = [None if t is None else t.to(device, dtype) for t in (hidden, ref_hidden, weight, ref_weight)]
    biases = [draw(vocabulary).to(device, dtype) if bias else None for _ in range(2)]
    last = min(128, (vocabulary - 1) // 32 * 32)
    for head in out:
        biases[head][[*range(0, vocabulary, 5), *range(last, vocabulary), int(token_ids[0])]] = -torch.inf
    for way, kind in (("dense", torch.float64), ("dense", dtype), (impl, dtype)):
        x, r, w, rw = (None if t is None else t.to(kind, copy=True) for t in inputs)
        b, rb = (None if t is None else t.to(kind) for t in biases)
        if mixed and way == impl:
            x, r = x.float(), r.float()
        x = x.requires_grad_()
        frozen = Head(w, b, options.get("logit_scale", 1.0), options.get("softcap"))
        ref_head = replace(frozen, weight_VD=rw, bias_V=rb) if own_reference else frozen
        parts = [x]
        head = frozen
        if trains:
            head = replace(
                frozen, weight_VD=w.clone().requires_grad_(), bias_V=None if b is None else b.clone().requires_grad_()
            )
            parts += [part for part in (head.weight_VD, head.bias_V) if part is not None]
        given = LossInputs(x, r, head, ref_head, token_ids, confidence, direction)
        scored = scored_loss(given if memory is None else replace(given, memory=memory), way)
        (scored.divergence_N.double() * share).sum().backward()
        # What the reference gives a token matters where the target leaves it a share.
        ref_log_p = scored.ref_log_p_N.where(confidence < 1, 0.0)
        found.append(
            [
                scored.divergence_N.detach().double(),
                *(part.grad.double() for part in parts),
                *(part.detach().double() for part in (scored.behind_N, scored.log_p_N, ref_log_p)),
            ]
        )
    truth, *others = found
    assert not any(value.isnan().any() for value, *_ in found)
    return [max(map(_error, other, truth)) for other in others]


def _error(found, truth):
    """The largest error, as a share of the largest true number; infinite where only one of the two is a number."""
    if not truth.numel():
        return 0.0 if found.shape == truth.shape else torch.inf
    finite = truth.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return torch.inf
    if not finite.any():
        return 0.0
    return float((found - truth)[finite].abs().max() / truth[finite].abs().max().clamp(min=1e-6))


if __name__ == "__main__":
    torch.manual_seed(0)
    results = []
    shapes = ({}, {"logit_scale": 0.5}, {"softcap": 5.0}, {"logit_scale": 2.0, "softcap": 30.0})
    impl = sys.argv[1]
    # Seven tokens in chunks of three; rows of 70 logits in blocks of 32 where they are the kernel's.
    small = {"impl": impl, "memory": 3 * 128 * 12}
    if impl == "triton":
        from anchorlwf.loss import row_kernel

        row_kernel.LANES, row_kernel.PER_LANE = 8, 4
    else:
        from anchorlwf import loss

        loss.chunked_loss = partial(loss.chunked_loss, make=partial(GpuPass, rows=plain_rows, limit=small["memory"]))

    def add(name, direction, options, bias, own_reference, dtype, size=1.0, **more):
        found = case(direction, options, bias, own_reference, getattr(torch, dtype), size, **small, **more)
        results.append([f"{direction} {name} {options} bias={bias}", dtype, *found])

    for direction, options, bias in itertools.product(DIRECTIONS, shapes, (False, True)):
        add("trains" if bias else "", direction, options, bias, bias, "float32", trains=bias)
    for direction, dtype in itertools.product(DIRECTIONS, ("bfloat16", "float16")):
        add("half", direction, {}, False, False, dtype)
        add("half trains", direction, {"logit_scale": 0.25}, True, True, dtype, trains=True)
        add("half under float32 states", direction, {}, True, False, dtype, mixed=True)
    for direction in DIRECTIONS:
        add("large", direction, {}, False, False, "float32", 300.0)
    for direction, out, dtype in itertools.product(DIRECTIONS, ((0, 1), (0,), (1,)), ("float32", "bfloat16")):
        add(f"excluded by {out}", direction, {"logit_scale": 0.5}, True, True, dtype, out=out)
    add("no token", "forward", {}, False, False, "float32", shape=(0, 70, 20))
    sys.stdout.write(json.dumps(results))
