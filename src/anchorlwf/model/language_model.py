"""Loading a causal language model, its adapter and its reference.

The reference is the same weights with the adapter off (LoRA), or a frozen copy (full fine-tuning): paper section 3.3.
"""

import contextlib
import copy
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from anchorlwf.data.record import ModelStamp, Prompt, Record
from anchorlwf.errors import ModelError, PromptError, wrong
from anchorlwf.model import chat_template
from anchorlwf.model.adapter import adapter_settings, put_adapter
from anchorlwf.model.codec import Codec
from anchorlwf.model.fingerprint import network_sha
from anchorlwf.model.formats.gguf import is_gguf
from anchorlwf.model.loading import Checkpoint, reading
from anchorlwf.model.lora.attachment import attach
from anchorlwf.model.lora.targets import Targets
from anchorlwf.model.model_files import EMBEDDED, Marks, embedded_path, marks_of

__all__ = [
    "EMBEDDED",
    "LanguageModel",
    "adapter_of",
    "canonical_name",
    "checkpoint_of",
    "embedded_path",
    "load_codec",
    "load_model",
]

_log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LanguageModel:
    """A causal language model with its codec: what every stage works with.

    Attributes:
        net: the transformers model, or the PEFT model around it.
        codec: text to ids and back.
        name, revision: as loaded, for the stamp.
        adapter: folder of the adapter, where one was loaded.
        marks: what the file system said about the model's files before they were read. None: the weights do not come
            from files, because they were trained or put together in memory.
        targets: what trains, once `attach_lora` has put an adapter on.
    """

    def __init__(
        self,
        net: PreTrainedModel | PeftModel,
        codec: Codec,
        name: str,
        revision: str | None = None,
        adapter: str | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.net, self.codec, self.name, self.revision, self.adapter = net, codec, name, revision, adapter
        self.marks = marks
        self.targets: Targets | None = None
        self._copy: PreTrainedModel | None = None

    @property
    def causal(self) -> PreTrainedModel:
        """The transformers model itself, under any adapter."""
        return self.net.get_base_model() if isinstance(self.net, PeftModel) else self.net

    @property
    def backbone(self) -> nn.Module:
        """The network below the head; its `last_hidden_state` is what the head projects."""
        return self.backbone_of(self.net)

    @staticmethod
    def backbone_of(net: PreTrainedModel | PeftModel) -> nn.Module:
        """The network below the head of any causal model, such as the reference."""
        causal = net.get_base_model() if isinstance(net, PeftModel) else net
        base = getattr(causal, causal.base_model_prefix)
        # OPT's head reads its decoder and never calls the module around it.
        return getattr(base, "decoder", base)

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self.causal.get_input_embeddings().weight.device

    @property
    def stamp(self) -> ModelStamp:
        """Fingerprints that tie records to this tokenizer and template."""
        return self.codec.stamp(self.name, self.revision)

    def check_stamp(self, record: Record, ours: ModelStamp | None = None) -> None:
        """Raise unless the record's ids belong to this tokenizer, chat template and vocabulary, and its text to them.

        Args:
            record: the record to check.
            ours: this model's stamp, to save time when many records are checked: computing it is slow with a large
                vocabulary.

        Raises:
            StampError: another tokenizer or template, or an id that no token has.
            RecordError: the record's `completion` is not the text of its ids.
        """
        self.codec.check_record(record, ours or self.stamp, self.vocabulary)

    def marks_now(self) -> Marks:
        """What the file system says of the model's files now; compare `marks`."""
        return {**marks_of(self.name, self.revision), **({} if self.adapter is None else marks_of(self.adapter))}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: those of the generation config, the tokenizer and the chat template."""
        return self.codec.stop_ids(self.causal.generation_config.eos_token_id)

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self.causal.get_input_embeddings().weight.shape[0]

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens in a sequence, or None where the architecture sets no bound."""
        return getattr(self.causal.config.get_text_config(), "max_position_embeddings", None)

    def room(self, prompt_ids: list[int], wanted: int) -> int:
        """How many of the `wanted` tokens fit behind this prompt; at least one.

        Raises:
            PromptError: the prompt alone fills the context.
        """
        limit = self.context_length
        if limit is None:
            return wanted
        if len(prompt_ids) >= limit:
            fix = "Shorten the prompt."
            raise PromptError(wrong("prompt", f"fewer than {limit} tokens (context)", len(prompt_ids), fix))
        return min(wanted, limit - len(prompt_ids))

    def check_finite(self, values: Tensor) -> None:
        """Raise `ModelError` unless all numbers that came out of the model are finite.

        Of logits it is enough to give the largest at each position: it is infinite or NaN if any of them is, and it
        hides the bias of -inf by which a head may exclude a token. Weights are inspected only if something is wrong.
        """
        if bool(values.isfinite().all()):
            return
        flawed = [name for name, weight in self.net.named_parameters() if _flawed(weight)]
        got, fix = f"NaN or infinity in {self.causal.dtype}", "Load it in another dtype, such as float32."
        if flawed:
            more = f" and {len(flawed) - 3} more" if len(flawed) > 3 else ""
            got = f"NaN or infinity, which stand in its weights {', '.join(flawed[:3])}{more}"
            fix = "Take an undamaged copy of the weights (or of the adapter)."
        raise ModelError(wrong(f"output of model {self.name!r}", "finite numbers", got, fix))

    def check_prompt(self, prompt: Prompt) -> list[str]:
        """Check that an answer fits behind this prompt, and report what the chat template changes in it.

        Returns:
            The remarks of `Codec.remarks`.

        Raises:
            PromptError: the prompt fills the context, or the template refuses it.
        """
        self.room(self.codec.encode_prompt(prompt.messages, prompt.tools), 1)
        return self.codec.remarks(prompt.messages, prompt.tools)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator["LanguageModel"]:
        """The reference as a separate language model, inside the `with` block."""
        with self.reference() as net:
            yield LanguageModel(net, self.codec, self.name, self.revision)

    def with_adapter(self, folder: str | Path) -> "LanguageModel":
        """A second model over the same weights, with a saved adapter on it; this one stays as it is.

        Raises:
            ModelError: this one has an adapter; or as `put_adapter`.
        """
        if isinstance(self.net, PeftModel):
            raise ModelError(wrong("model", "a base model", "one with an adapter", "Load the base model alone."))
        shared = {id(tensor): tensor for tensor in (*self.causal.parameters(), *self.causal.buffers())}
        net = put_adapter(copy.deepcopy(self.causal, shared), str(folder), self.stamp)
        return LanguageModel(net.to(self.device).eval(), self.codec, self.name, self.revision, str(folder))

    def attach_lora(self, rank: int, alpha: float, dropout: float, targets: str | list[str], seed: int) -> None:
        """Put a fresh LoRA adapter on the model; everything else is frozen.

        `targets` says afterwards what trains.

        Raises:
            ModelError: there is an adapter already; or see `anchorlwf.model.lora.attachment.attach`.
        """
        if isinstance(self.net, PeftModel):
            raise ModelError(wrong("adapter", "a model without one", "a PEFT model", "Merge it first, or train it on."))
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, task_type="CAUSAL_LM")
        # A generator cannot be handed to PEFT, so the global one is set for the initialisation and then put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net, self.targets = attach(self.causal, config, targets)
        self.marks = None

    def stop_dropout(self) -> None:
        """Switch off the dropout that the network was trained with; an adapter's own stays.

        The reference has none, and whether a token holds is read off the very pass that trains.
        """
        for module in self.causal.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, rate in vars(module).items():
                # Attention takes its rate as a number.
                if isinstance(rate, float) and re.search(r"drop(out|$)|pdrop", name):
                    setattr(module, name, 0.0)

    def keep_reference_copy(self) -> None:
        """Freeze a copy of the present weights as the reference, for full fine-tuning."""
        assert not isinstance(self.net, PeftModel), "with an adapter the base itself is the reference"
        self._copy = copy.deepcopy(self.causal).eval().requires_grad_(False)
        self.marks = None

    @property
    def has_reference(self) -> bool:
        """Whether `reference` is another model than this one: there is an adapter on it, or a frozen copy beside it."""
        return self._copy is not None or isinstance(self.net, PeftModel)

    @contextlib.contextmanager
    def reference(self) -> Iterator[PreTrainedModel | PeftModel]:
        """The reference network: no gradient, adapter off (bit-exact), dropout off.

        Switching the adapter off leaves dropout alive, hence the switch to eval mode and back; and switching it on
        makes even a frozen adapter trainable.
        """
        with torch.no_grad():
            if self._copy is not None:
                yield self._copy
                return
            modes = [(module, module.training) for module in self.net.modules() if module.training]
            frozen = [weight for weight in self.net.parameters() if not weight.requires_grad]
            self.net.eval()
            try:
                with _adapter_off(self.net) if isinstance(self.net, PeftModel) else contextlib.nullcontext():
                    yield self.net
            finally:
                for module, mode in modes:
                    module.training = mode
                for weight in frozen:
                    weight.requires_grad_(False)

    def reference_sha(self) -> str:
        """SHA-256 of the reference in memory, the same with an adapter on it and without."""
        with self.reference() as net:
            return network_sha(net if net is self._copy else self.causal)


@contextlib.contextmanager
def _adapter_off(net: PeftModel) -> Iterator[None]:
    """`net.disable_adapter()`, which would first read the state of every layer: 10 ms, where steps take 200 ms."""
    tuner = net.base_model
    was_off = next((m.disable_adapters for m in net.modules() if isinstance(m, BaseTunerLayer)), True)
    if was_off or not isinstance(tuner, BaseTuner):
        with net.disable_adapter():
            yield
        return
    tuner.disable_adapter_layers()
    try:
        yield
    finally:
        tuner.enable_adapter_layers()


def _flawed(weight: Tensor) -> bool:
    """Whether a parameter holds NaN or infinity; a bias may hold -inf."""
    return bool((weight.isposinf() if weight.dim() == 1 else weight.isinf()).any() or weight.isnan().any())


def canonical_name(name: str) -> str:
    """The name by which a model is known: a local folder or file goes by its absolute path."""
    # An empty name would become the current folder; it is kept, so that it is refused.
    local = name not in ("", EMBEDDED) and (Path(name).is_dir() or is_gguf(name))
    return str(Path(name).resolve()) if local else name


def adapter_of(path: str) -> tuple[str, str | None]:
    """If `path` is an adapter folder, the base model it names and the folder; else the path and nothing.

    Raises:
        ModelError: an adapter whose settings are torn, or of a kind that cannot be used.
    """
    if not (Path(path) / "adapter_config.json").is_file():
        return path, None
    return (adapter_settings(path).get("base_model_name_or_path") or EMBEDDED), path


def checkpoint_of(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
    """Where the files of a model lie. Raises `ModelError` for what can be no model's name."""
    source = str(embedded_path()) if name == EMBEDDED else name
    return Checkpoint(name, source, revision, trust_remote_code)


def load_codec(name: str, trust_remote_code: bool) -> tuple[Codec, frozenset[int]]:
    """Tokenizer and end-of-turn ids of a model, without its weights. Raises `ModelError`."""
    chat_template.start()
    checkpoint = checkpoint_of(name, trust_remote_code=trust_remote_code)
    codec = Codec(checkpoint.tokenizer())
    # A tokenizer without a model beside it names its own end.
    ends = (checkpoint.settings("generation_config.json") or {}).get("eos_token_id")
    codec.warn_of_ends(ends)
    return codec, codec.stop_ids(ends)


def load_model(
    name: str | None = None,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a causal language model in eval mode.

    Args:
        name: local folder, GGUF file or hub name. A folder that contains an adapter is loaded with its base. None: the
            embedded model.
        adapter: folder of a LoRA adapter to attach.
        revision: hub revision.
        dtype: float32, bfloat16 or float16. None: bfloat16 on a GPU that has it, else float32.
        device: a torch device. None: the first GPU, else the CPU.
        trust_remote_code: run code that comes with the model. Leave it off unless you trust its author.

    Raises:
        ModelError: there is no model to load under that name; weights are missing or superfluous; the adapter does not
            fit or was made for another base; or the chat template does not end.

    Warns:
        ModelWarning: the generation config does not stop where the chat template ends turns.
    """
    name, inside = adapter_of(EMBEDDED if name is None else str(name))
    if adapter is not None and inside is not None and Path(adapter).resolve() != Path(inside).resolve():
        fix = f"Merge {inside} into its base first, or give the base as the model."
        raise ModelError(wrong("model", "a base model, where an adapter is given", f"the adapter {inside}", fix))
    if adapter is not None:
        adapter_settings(adapter)
    name, folder = canonical_name(name), inside if adapter is None else str(adapter)
    chosen_device = _device(device)
    weights_type = _weights_type(dtype, chosen_device)
    before = marks_of(name, revision)
    marks = {} if folder is None else marks_of(folder)
    chat_template.start()
    try:
        checkpoint = checkpoint_of(name, revision=revision, trust_remote_code=trust_remote_code)
        tokenizer, net = checkpoint.read(weights_type, chosen_device)
    except ModelError as error:
        if inside is None:
            raise
        fix = "Or give both: the base with --model, the adapter with --adapter."
        raise ModelError(f"adapter {inside} names a base that cannot be read: {error} {fix}") from error
    # What was not on disk before has just been downloaded.
    marks = {**(before or marks_of(name, revision)), **marks}
    model = LanguageModel(net, Codec(tokenizer), name, revision, folder, marks)
    model.codec.warn_of_ends(model.causal.generation_config.eos_token_id)
    if folder is not None:
        model.net = put_adapter(net, folder, model.stamp)
    _place(model, chosen_device)
    _log.info("%s", _loaded_as(model, trust_remote_code))
    return model


def _place(model: LanguageModel, device: torch.device) -> None:
    """Move a model to its device, in eval mode."""
    fix = "Choose another device or a smaller model."
    with reading(f"model {model.name!r}", f"a model that fits on {device}", fix):
        # Quantised weights are there already, and some of them refuse to be asked.
        if getattr(model.causal, "hf_quantizer", None) is None:
            model.net.to(device)
        model.net.eval()


def _loaded_as(model: LanguageModel, trust_remote_code: bool) -> str:
    """One line: which model, how large, in which dtype, on which device; and where its files hold another dtype."""
    ours = str(model.causal.dtype).removeprefix("torch.")
    where = checkpoint_of(model.name, revision=model.revision, trust_remote_code=trust_remote_code)
    settings = where.settings("config.json") or {}
    stored = str(settings.get("dtype") or settings.get("torch_dtype") or ours).removeprefix("torch.")
    other = f" (its files: {stored}; --dtype {stored} loads it so)" if stored != ours and stored in _DTYPES else ""
    millions = sum(weight.numel() for weight in model.causal.parameters()) / 1e6
    on = "" if model.adapter is None else f" with {model.adapter}"
    return f"model {model.name}{on}: {millions:,.1f} M parameters, {ours} on {model.device}{other}"


def _weights_type(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in _DTYPES:
        raise ModelError(wrong("dtype", " or ".join(_DTYPES), name, "Choose one of them."))
    return _DTYPES[name]


def _device(name: str | None) -> torch.device:
    expected = "a device of torch, such as cpu or cuda:0"
    with reading(f"device {name!r}", expected, "Choose one that this machine has."):
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
