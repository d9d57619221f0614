"""Three ways to the same numbers. Run in a process of its own with TRITON_INTERPRET=1, it prints JSON; gpu/ imports it.

The truth is the dense loss in float64; its own error in the narrow type says what can be asked of the kernels.
"""

import itertools
import json
import sys

import torch

from anchorlwf.loss import anchor_loss

CONFIDENCES = [0.0, 0.5, 0.0, 0.999, 0.1, 0.0, 1.0]


def case(direction, options, bias, own_reference, dtype, size, *, shape=(7, 150, 20), device="cpu"):
    """[the narrow dense loss's error, the kernels' error], as shares of the largest value or gradient."""
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
    for impl, kind in (("dense", torch.float64), ("dense", dtype), ("triton", dtype)):
        x, r, w, rw = (None if t is None else t.to(kind, copy=True) for t in inputs)
        b, rb = (None if t is None else t.to(kind) for t in biases)
        x = x.requires_grad_()
        loss = anchor_loss(
            x,
            r,
            w,
            token_ids,
            confidence,
            bias=b,
            ref_weight=rw,
            ref_bias=rb if own_reference else None,
            direction=direction,
            impl=impl,
            **options,
        )
        (loss.double() * share).sum().backward()
        found.append((loss.detach().double(), x.grad.double()))
    (value, grad), *others = found
    scale = value.abs().max().clamp(min=1e-6), grad.abs().max().clamp(min=1e-6)
    return [float(max((v - value).abs().max() / scale[0], (g - grad).abs().max() / scale[1])) for v, g in others]


if __name__ == "__main__":
    torch.manual_seed(0)
    results = []
    shapes = ({}, {"logit_scale": 0.5}, {"softcap": 5.0}, {"logit_scale": 2.0, "softcap": 30.0})
    for direction, options, bias in itertools.product(("forward", "reverse"), shapes, (False, True)):
        results.append(
            [f"{direction} {options} bias={bias}", "float32", *case(direction, options, bias, bias, torch.float32, 1.0)]
        )
    for direction in ("forward", "reverse"):
        results.append([f"{direction} large", "float32", *case(direction, {}, False, False, torch.float32, 300.0)])
        results.append([f"{direction} half", "bfloat16", *case(direction, {}, False, False, torch.bfloat16, 1.0)])
    sys.stdout.write(json.dumps(results))
