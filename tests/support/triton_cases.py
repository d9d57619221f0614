"""Three ways to the same numbers. Run in a process of its own with TRITON_INTERPRET=1, it prints JSON; gpu/ imports it.

The truth is the dense loss in float64; its own error in the narrow type says what can be asked of the kernels.
"""

import itertools
import json
import sys
from dataclasses import replace

import torch

from anchorlwf.loss import scored_loss
from anchorlwf.loss.inputs import Head, LossInputs

DIRECTIONS = ("forward", "reverse")
CONFIDENCES = [0.0, 0.5, 0.0, 0.999, 0.1, 0.0, 1.0]


def case(direction, options, bias, own_reference, dtype, size, *, shape=(7, 150, 20), device="cpu", out=()):
    """[the narrow dense loss's error, the kernels' error], as shares of the largest value or gradient.

    `out`: which heads exclude tokens (model, reference): the second tile, a standing token and every fifth one.
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
    for head in out:
        biases[head][[*range(0, vocabulary, 5), *range(128, vocabulary), int(token_ids[0])]] = -torch.inf
    for impl, kind in (("dense", torch.float64), ("dense", dtype), ("triton", dtype)):
        x, r, w, rw = (None if t is None else t.to(kind, copy=True) for t in inputs)
        b, rb = (None if t is None else t.to(kind) for t in biases)
        x = x.requires_grad_()
        head = Head(w, b, options.get("logit_scale", 1.0), options.get("softcap"))
        ref_head = replace(head, weight_VD=rw, bias_V=rb) if own_reference else head
        scored = scored_loss(LossInputs(x, r, head, ref_head, token_ids, confidence, direction), impl)
        (scored.divergence_N.double() * share).sum().backward()
        found.append((scored.divergence_N.detach().double(), x.grad.double(), scored.behind_N.double()))
    truth, *others = found
    assert not any(value.isnan().any() for value, *_ in found)
    return [max(map(_error, other, truth)) for other in others]


def _error(found, truth):
    """The largest error, as a share of the largest true number; infinite where only one of the two is a number."""
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
    for direction, options, bias in itertools.product(DIRECTIONS, shapes, (False, True)):
        results.append(
            [f"{direction} {options} bias={bias}", "float32", *case(direction, options, bias, bias, torch.float32, 1.0)]
        )
    for direction in DIRECTIONS:
        results.append([f"{direction} large", "float32", *case(direction, {}, False, False, torch.float32, 300.0)])
        results.append([f"{direction} half", "bfloat16", *case(direction, {}, False, False, torch.bfloat16, 1.0)])
    for direction, out, dtype in itertools.product(DIRECTIONS, ((0, 1), (0,), (1,)), ("float32", "bfloat16")):
        excluding = case(direction, {"logit_scale": 0.5}, True, True, getattr(torch, dtype), 1.0, out=out)
        results.append([f"{direction} excluded by {out}", dtype, *excluding])
    sys.stdout.write(json.dumps(results))
