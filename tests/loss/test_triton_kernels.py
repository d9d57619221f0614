"""The Triton kernels, in Triton's interpreter on the CPU, against the dense loss in float64."""

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

LIMITS = {"float32": 1e-5, "bfloat16": 1e-2}
"""Of the largest value. bfloat16: the gradient is returned in it, with 8 bits."""
SLACK = 4
"""Times the error of the dense loss in the same type, where that is more (reverse KL of extreme logits cancels)."""


@pytest.fixture(autouse=True)
def _needs_triton():
    if importlib.util.find_spec("triton") is None:
        if os.environ.get("CI") == "true" and sys.platform == "linux":
            pytest.fail("triton is missing; the dev extra brings it")
        pytest.skip("needs triton")


def test_the_kernels_give_the_value_and_gradient_of_the_definition():
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "support" / "triton_cases.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 32
    bad = [row for row in found if row[3] > max(LIMITS[row[1]], SLACK * row[2])]
    assert bad == []


def test_off_the_gpu_the_kernels_are_refused_and_auto_does_without():
    hidden, weight = torch.randn(3, 8), torch.randn(20, 8)
    ids, confidence = torch.tensor([1, 2, 3]), torch.tensor([0.0, 1.0, 0.5])
    with pytest.raises(LossError, match="CUDA tensors"):
        anchor_loss(hidden, hidden, weight, ids, confidence, impl="triton")
    auto = anchor_loss(hidden, hidden, weight, ids, confidence)
    assert torch.equal(auto, anchor_loss(hidden, hidden, weight, ids, confidence, impl="chunked"))
