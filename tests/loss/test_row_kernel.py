"""The loss as a GPU computes it, on the CPU, against the dense loss in float64: with the kernel, in Triton's
interpreter, and without.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anchorlwf.errors import LossError
from anchorlwf.loss import anchor_loss
from anchorlwf.loss.gpu_pass import GpuPass, plain_rows
from anchorlwf.loss.inputs import Head

LIMITS = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3}
"""Of the largest value. Half: the gradient is returned in it, with 8 or 11 bits."""
SLACK = 4
"""Times the error of the dense loss in the same type, where that is more (reverse KL of extreme logits cancels)."""


@pytest.fixture(autouse=True)
def _needs_triton():
    if importlib.util.find_spec("triton") is None:
        if os.environ.get("CI") == "true" and sys.platform == "linux":
            pytest.fail("triton is missing; the dev extra brings it")
        pytest.skip("needs triton")


@pytest.mark.parametrize("impl", ["triton", "chunked"])
def test_values_scores_and_gradients_are_those_of_the_definition(impl):
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "support" / "gpu_loss_cases.py", impl],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 43
    bad = [row for row in found if row[3] > max(LIMITS[row[1]], SLACK * row[2])]
    assert bad == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("limit", [2**22, 2**26, 2**30])
def test_buffers_and_gradient_fit_the_bound(dtype, limit):
    count, width, vocabulary = 3_000, 16, 10_000
    head = Head(torch.empty(vocabulary, width, dtype=dtype), None, 1.0, None)
    states, ids = torch.empty(count, width, dtype=dtype), torch.zeros(count, dtype=torch.long)
    sizes = []

    def rows(given):
        sizes.append(len(given.ids_C))
        given.scores_4C.zero_()

    # The products are not what is measured.
    work = GpuPass(head, head, states, states, ids, torch.zeros(count), "forward", True, None, rows, limit)
    for _ in work.chunks():
        pass
    assert sum(sizes) == count
    row_bytes = 10_048 * (8 + 2 * (dtype != torch.float32))
    assert max(sizes) * row_bytes + 4 * count * width <= limit
    # No smaller than they need be, and as high as cuBLAS's tiles where they can be.
    assert max(sizes) == min(count, 2944) or 2 * max(sizes) * row_bytes > limit / 4
    assert max(sizes) < 128 or max(sizes) % 128 == 0 or max(sizes) == count


def test_rows_without_the_kernel_have_room_for_their_spare_ones():
    states = torch.empty(3_000, 16)
    head = Head(torch.empty(10_000, 16), None, 1.0, 5.0)
    given = (head, head, states, states, torch.zeros(3_000, dtype=torch.long), torch.zeros(3_000), "forward", True)
    with_kernel, without = (GpuPass(*given, None, rows, 2**26)._size(3_000, 10_048) for rows in (print, plain_rows))
    assert without < with_kernel


def test_off_the_gpu_the_kernel_is_refused_and_auto_does_without(monkeypatch):
    # Whatever TRITON_INTERPRET says where the tests run.
    monkeypatch.setattr("anchorlwf.loss.row_kernel.interpreted", lambda: False)
    hidden, weight = torch.randn(3, 8), torch.randn(20, 8)
    ids, confidence = torch.tensor([1, 2, 3]), torch.tensor([0.0, 1.0, 0.5])
    with pytest.raises(LossError, match="CUDA tensors"):
        anchor_loss(hidden, hidden, weight, ids, confidence, impl="triton")
    auto = anchor_loss(hidden, hidden, weight, ids, confidence)
    assert torch.equal(auto, anchor_loss(hidden, hidden, weight, ids, confidence, impl="chunked"))
