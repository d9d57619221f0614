"""`bench --gpu` where there is none: its parts run on the CPU, with a clock and an allocator in the place of CUDA's."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from anchorlwf.bench import gpu, gpu_measures
from anchorlwf.bench.step_cost import StepSetup
from anchorlwf.errors import ConfigError


class _Event:
    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


@pytest.fixture
def card(monkeypatch):
    """A CPU that answers as a card does; the figures mean nothing."""
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="none", total_memory=2**30))
    monkeypatch.setattr(gpu, "check_prerequisites", lambda: None)
    monkeypatch.setattr(gpu_measures, "DEVICE", "cpu")
    # The kernel does not run here; what it is compared with does.
    monkeypatch.setattr(gpu_measures, "_IMPLEMENTATIONS", ("dense", "chunked"))
    monkeypatch.setattr(gpu_measures, "VOCABULARY", 64)
    monkeypatch.setattr(gpu, "SHAPES", ((8, 16), (4, 8)))
    tiny = StepSetup(records=2, tokens=8, prompt_tokens=3, layers=1, width=128, vocabulary=1024)
    monkeypatch.setattr(gpu, "GPU_STEP", tiny)


@pytest.mark.usefixtures("card")
def test_everything_is_measured_written_and_shown(tmp_path):
    pytest.importorskip("trl")
    parts = []
    out = tmp_path / "gpu.json"
    found = gpu.bench_gpu(out, on_part=parts.append)
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert len(parts) == 2 + 4 + 1 + 1
    assert [row["name"] for row in found["losses"]][:4] == ["matmuls", "ours", "trl", "without_triton"]
    assert not [row for row in [*found["losses"], *found["steps"], *found["profiles"]] if "failed" in row]
    assert {row["name"] for row in found["steps"]} == {"ours", "trl_sft", "ours_uncached", "full_ce"}
    assert all(row["right"] for row in found["errors"])
    table = gpu.gpu_table(found)
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "times as fast as TRL" in table
    assert "1.0 x TRL" in table


@pytest.mark.usefixtures("card")
def test_what_there_is_no_time_for_is_named_and_one_failure_costs_no_other_figure(monkeypatch, tmp_path):
    def broken(_problem):
        raise RuntimeError("out of | memory")

    monkeypatch.setitem(gpu_measures._LOSSES, "ours", broken)
    monkeypatch.setattr(gpu, "_STEPS", ())
    clock = iter([0.0, *([1.0] * 4), *([100.0] * 99)])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = gpu.bench_gpu(tmp_path / "gpu.json", seconds=50)
    assert found["left_out"] == ["loss 4 x 8", "errors", "profile ours"]
    assert json.loads((tmp_path / "gpu.json").read_text())["left_out"] == found["left_out"]
    ours, *others = found["losses"][1:]
    assert "RuntimeError" in ours["failed"]
    assert all("ms" in row for row in others)
    table = gpu.gpu_table(found)
    assert "left out" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_what_is_missing_is_said_at_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "triton" else name)
    with pytest.raises(ConfigError, match="got no CUDA device, no triton"):
        gpu.check_prerequisites()
