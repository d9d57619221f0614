"""Real models small enough for a test: four architectures with random weights, one tokenizer, and the shipped base."""

import os

# Before any Hugging Face library is imported: no test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import CONTEXT, WINDOW
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anchorlwf.bench.zoo.architectures import tiny_tokenizer
from anchorlwf.files import CACHE_VARIABLE
from anchorlwf.model.language_model import LanguageModel, load_model

pytest_plugins = ["real_world_cases"]

# No deadline: the first example pays for imports. In CI the examples are the same every time, so that a failure there
# can be repeated here.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


def _qwen3(common: dict[str, object]) -> PreTrainedModel:
    config = Qwen3Config(**common, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)
    return Qwen3ForCausalLM(config)


def _llama(common: dict[str, object]) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=False))


def _gpt_neox(common: dict[str, object]) -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**common, tie_word_embeddings=False))


def _gemma2(common: dict[str, object]) -> PreTrainedModel:
    config = Gemma2Config(
        **common,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        # The real one is tied; with random weights that would repeat one token for ever.
        tie_word_embeddings=False,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


ARCHITECTURES: dict[str, Callable[[dict[str, object]], PreTrainedModel]] = {
    "qwen3": _qwen3,
    "llama": _llama,
    "gpt_neox": _gpt_neox,
    "gemma2": _gemma2,
}


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the cache folder of whoever runs it; the programs that tests start do not either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random checkpoint by architecture, written on first use."""
    root, tokenizer = tmp_path_factory.mktemp("tiny"), tiny_tokenizer(CONTEXT)

    def folder(architecture: str) -> Path:
        path = root / architecture
        if path.exists():
            return path
        # Wide random weights, so that argmax is decided by far more than rounding.
        common = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": CONTEXT,
            "initializer_range": 0.3,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            net = ARCHITECTURES[architecture](common)
        net.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        net.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def any_path(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Path:
    """Each tiny checkpoint in turn."""
    return tiny_folder(request.param)


@pytest.fixture(scope="session")
def any_model(any_path: Path) -> LanguageModel:
    """Each tiny model in turn, loaded in float32. Shared by all tests: do not change it."""
    return load_model(str(any_path), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_path(tiny_folder: Callable[[str], Path]) -> Path:
    """The tiny Qwen 3 checkpoint (head tied to the embedding, like the embedded base)."""
    return tiny_folder("qwen3")


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> LanguageModel:
    """The tiny Qwen 3, loaded. Shared by all tests: do not change it."""
    return load_model(str(tiny_path), dtype="float32", device="cpu")


@pytest.fixture
def fresh_model(tiny_path: Path) -> LanguageModel:
    """The tiny Qwen 3, loaded for this test alone: free to be changed."""
    return load_model(str(tiny_path), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def base() -> LanguageModel:
    """The embedded base model. Shared by all tests: do not change it."""
    return load_model(dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def prompt_ids(tiny_model: LanguageModel) -> list[int]:
    """A templated question in the ids of every tiny model (they share one tokenizer)."""
    return tiny_model.codec.encode_prompt([{"role": "user", "content": "Where was she born?"}])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of its own with so many bytes left; where none can be mounted the test is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root's rights")

    def leave(free: int) -> Path:
        (disk / "ballast").write_bytes(b"x" * (2**22 - free))
        return disk

    try:
        yield leave
    finally:
        # The helper of a server that was killed has its log open until it reads the end of its own input.
        deadline = time.monotonic() + 20
        while subprocess.run(["umount", disk], check=time.monotonic() > deadline).returncode:
            time.sleep(0.2)
