"""A hash of tensors depends on all of them, and on nothing else."""

import hashlib

import pytest
import torch
from torch import nn

from anchorlwf.model.fingerprint import base_sha, base_tensors, tensors_sha

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "empty": torch.zeros(0, 4)}


def test_the_order_and_the_layout_in_memory_do_not_matter():
    strided = TENSORS["a"].t().contiguous().t()
    assert not strided.is_contiguous()
    turned = {"b": TENSORS["b"], "empty": TENSORS["empty"], "a": strided}
    assert tensors_sha(turned) == tensors_sha(TENSORS)


@pytest.mark.parametrize(
    "changed",
    [
        {**TENSORS, "a": TENSORS["a"] + torch.eye(2, 3)},
        {**TENSORS, "a": TENSORS["a"].reshape(3, 2)},
        {**TENSORS, "a": TENSORS["a"].double()},
        {**TENSORS, "b": TENSORS["b"].int()},
        {"c" if name == "a" else name: tensor for name, tensor in TENSORS.items()},
        {"a": TENSORS["a"], "b": TENSORS["b"]},
    ],
)
def test_any_change_changes_it(changed):
    assert tensors_sha(changed) != tensors_sha(TENSORS)


def test_it_can_be_computed_by_anyone():
    tensor = torch.tensor([1.0, 2.0])
    inner = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert tensors_sha({"w": tensor}) == hashlib.sha256(f"w torch.float32 [2] {inner}\n".encode()).hexdigest()


def test_a_base_is_known_in_float32_and_in_bfloat16():
    net = nn.Linear(4, 4)
    net.register_buffer("computed", torch.ones(1))
    wide, whole = base_sha(net), set(base_tensors(net))
    assert whole == {"weight", "bias", "computed"}
    net.computed += 1
    assert base_sha(net.to(torch.bfloat16)) == wide
    net.bias.data[0] += 1
    assert base_sha(net) != wide
