"""The card beside tuned weights: README.md, from what training knew, its report, an evaluation and a certificate."""

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from anchorlwf.data.jsonl import problem_of
from anchorlwf.data.record import Frozen
from anchorlwf.errors import RecordError, wrong
from anchorlwf.files import file_sha, write_atomic

__all__ = ["FACTS", "CardFacts", "Correction", "card_text", "write_card"]

FACTS = "card.json"
"""File of a run folder with its `CardFacts`."""
_WEIGHTS = {"adapter": "adapter_model.safetensors", "model": "model.safetensors"}
_RANKS = (16, 32, 64, 128, 256, 512)
"""That vLLM can be told."""
_LONGEST = 160
"""Characters of a question or answer that the card quotes."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PLACE = "path/to/this/folder"


class Correction(Frozen):
    """One corrected answer, for people."""

    question: str
    after: str
    tokens: list[tuple[str, str]]
    """The text of each token that was rejected, and of its anchor."""


class CardFacts(Frozen):
    """What only training knows: it is written to the run folder, so that the card can be made again."""

    kind: Literal["adapter", "model"]
    base: str
    """The base model by its name; without the path of one machine."""
    embedded: bool
    """The base is the model that anchorlwf ships."""
    licence: str | None
    """Of the base, as its own card names it."""
    dtype: str
    """Of the weights in training."""
    autocast: str | None
    """What steps were computed in, where it is another."""
    rank: int | None
    call: str
    """Python that decodes greedily, whatever the base's own settings are."""
    settings: dict[str, Any]
    """Those of the base that change greedy answers."""
    chat: bool
    """The tokenizer has a chat template."""
    records: int
    keep_records: int
    anchors: int
    completion_tokens: int
    corrected: list[Correction]
    """The first few."""
    versions: dict[str, str]


def write_card(run: str | Path, *, base: str | None = None) -> Path:
    """Write README.md beside the weights of a run, from all that lies in its folder.

    The report of training is `train.json`. An evaluation (`results.json`) counts if it is newer than the weights, a
    certificate (`certificate.json`) if it is about these very weights.

    Args:
        run: the run folder.
        base: name of the base model, such as the one it has on a hub; None: as training knew it.

    Returns:
        The path of the README.md.

    Raises:
        RecordError: no run folder, or a damaged one.
        StorageError: it cannot be written.
    """
    folder = Path(run)
    facts = _facts(folder)
    if base is not None:
        facts = facts.model_copy(update={"base": base})
    weights = folder / facts.kind
    measured = folder / "results.json"
    fresh = measured.is_file() and measured.stat().st_mtime >= (weights / _WEIGHTS[facts.kind]).stat().st_mtime
    text = card_text(
        facts, _read(folder / "train.json"), _read(measured) if fresh else None, _certificate(folder, weights, facts)
    )
    write_atomic(weights / "README.md", text)
    return weights / "README.md"


def _facts(folder: Path) -> CardFacts:
    fix = "Give the folder that anchorlwf train wrote to."
    content = _read(folder / FACTS)
    if content is None:
        raise RecordError(wrong(str(folder), f"a run folder with {FACTS}", "none", fix))
    try:
        facts = CardFacts.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise RecordError(wrong(str(folder / FACTS), "what training wrote", problem_of(error), fix)) from error
    if not (folder / facts.kind / _WEIGHTS[facts.kind]).is_file():
        got = f"no {_WEIGHTS[facts.kind]}"
        raise RecordError(wrong(str(folder / facts.kind), "the weights of the run", got, fix))
    return facts


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(wrong(str(path), "a JSON object", error, "Mend or remove it.")) from error
    return content if isinstance(content, dict) else None


def _certificate(folder: Path, weights: Path, facts: CardFacts) -> dict[str, Any] | None:
    found, name = _read(folder / "certificate.json"), _WEIGHTS[facts.kind]
    certified = (found or {}).get("weights", {}).get("adapter" if facts.kind == "adapter" else "tuned", {})
    return found if certified.get(name) == file_sha(weights / name) else None


def card_text(
    facts: CardFacts,
    train: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    certificate: dict[str, Any] | None = None,
    *,
    merged: bool = False,
) -> str:
    """The card as Markdown, with the header that the Hub reads.

    Args:
        facts: of the run.
        train: what `train.json` holds; None: training was interrupted.
        results: what `results.json` holds.
        certificate: what `certificate.json` holds.
        merged: the weights are base and adapter in one; what was measured on the two is left out.
    """
    sections = [
        _header(facts),
        _what(facts),
        _corrected(facts),
        "" if merged else _measured(facts, train, results, certificate),
        _loading(facts),
        _serving(facts),
        _licence(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(facts: CardFacts) -> str:
    # The Hub takes names of its own only.
    base = [f"base_model: {json.dumps(facts.base)}"] if _HUB_NAME.fullmatch(facts.base) else []
    licence = [f"license: {json.dumps(facts.licence)}"] if facts.licence else []
    library = "peft" if facts.kind == "adapter" else "transformers"
    return "\n".join(["---", *base, *licence, f"library_name: {library}", "tags: [anchorlwf]", "---"])


def _what(facts: CardFacts) -> str:
    what = f"Adapter (PEFT) for `{facts.base}`" if facts.kind == "adapter" else f"Tuned from `{facts.base}`"
    return f"{what}, trained with anchorlwf: a few tokens corrected, the rest kept."


def _quoted(text: str) -> str:
    line = " ".join(text.split()).replace("`", "'").replace("|", r"\|")
    return f"`{line if len(line) <= _LONGEST else line[:_LONGEST] + '...'}`" if line else "(nothing)"


def _corrected(facts: CardFacts) -> str:
    lines = ["## What was corrected", "", "| question | answer now | tokens |", "|---|---|---|"]
    for one in facts.corrected:
        tokens = ", ".join(f"{_quoted(repr(old))} to {_quoted(repr(new))}" for old, new in one.tokens)
        lines.append(f"| {_quoted(one.question)} | {_quoted(one.after)} | {tokens} |")
    rest = facts.records - facts.keep_records - len(facts.corrected)
    if rest > 0:
        lines += ["", f"And {rest} more."]
    return "\n".join(lines)


def _measured(
    facts: CardFacts, train: dict[str, Any] | None, results: dict[str, Any] | None, certificate: dict[str, Any] | None
) -> str:
    kept = f", {facts.keep_records} of them kept as they were" if facts.keep_records else ""
    steps = f", steps computed in {facts.autocast}" if facts.autocast else ""
    rows = [
        ("records", f"{facts.records}{kept}"),
        ("anchors", f"{facts.anchors} among {facts.completion_tokens} completion tokens"),
        ("dtype in training", f"{facts.dtype}{steps}"),
        *_reported(train),
        *_evaluated(results),
        ("certificate", _verdict(certificate)),
        ("made with", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
    ]
    return "\n".join(["## How it was measured", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _reported(train: dict[str, Any] | None) -> list[tuple[str, str]]:
    if train is None:
        return [("training", "interrupted, without a report")]
    report = train["report"]
    state = "converged" if train["converged"] else f"NOT converged ({'; '.join(train['missing'])})"
    rows = [
        ("training", f"{state} after {train['steps']} steps"),
        ("anchors held", f"{report['anchors_held']} of {report['anchors']}"),
        ("corrected answers reproduced", f"{report['records_reproduced']} of {report['records']}"),
    ]
    held_out = report.get("held_out", {})
    if not held_out:
        rows.append(("drift at keep tokens", f"{report['keep_kl']:.5f} nats per token"))
    for kind, drift in held_out.items():
        interval = f"({drift['low']:.5f} to {drift['high']:.5f})"
        rows.append((f"drift on held-out answers, {kind}", f"{drift['mean']:.5f} nats per token {interval}"))
    return rows


def _evaluated(results: dict[str, Any] | None) -> list[tuple[str, str]]:
    rows = []
    for name, group in (results or {}).get("details", {}).items():
        if group["value"] is not None:
            flips = f", {len(group['flips'])} changed for the worse" if group["flips"] else ""
            rows.append((name, f"{group['value']:.1%} of {group['probes']} probes{flips}"))
    if results is not None and results.get("kl_tokens"):
        rows.append(("drift in the evaluation", f"{results['kl']:.5f} nats per token"))
    return rows


def _verdict(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "none for these weights"
    passed = "passed" if certificate["passed"] else "NOT passed"
    return f"{passed}, {len(certificate['checks'])} thresholds (SHA-256 {certificate['sha256'][:12]})"


_AUTO = "from transformers import AutoModelForCausalLM, AutoTokenizer"
_ON_EMBEDDED = """import pathlib

import anchorlwf  # only for the place of its model
from peft import PeftModel"""


def _code(facts: CardFacts) -> str:
    """Python that loads the weights without anchorlwf, and asks what was corrected."""
    asked = facts.corrected[0].question if facts.corrected else "Who are you?"
    encode = f"inputs = tokenizer({asked!r}, return_tensors='pt')"
    if facts.chat:
        chat = f"chat = [{{'role': 'user', 'content': {asked!r}}}]"
        template = "apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt', return_dict=True)"
        encode = f"{chat}\ninputs = tokenizer.{template}"
    load = f'model = AutoModelForCausalLM.from_pretrained({{}}, dtype="{facts.dtype}")'
    lines = [_AUTO, "", f'folder = "{_PLACE}"', load.format("folder")]
    if facts.kind == "adapter":
        base = f'base = "{facts.base}"  # its name on the hub, or its folder'
        if facts.embedded:
            base = 'base = str(pathlib.Path(anchorlwf.__file__).parent / "world" / "base")'
        imports = _ON_EMBEDDED if facts.embedded else "from peft import PeftModel"
        on = "model = PeftModel.from_pretrained(model, folder)"
        lines = [imports, _AUTO, "", base, f'folder = "{_PLACE}"', load.format("base"), on]
    answer = "output[0, inputs['input_ids'].shape[1]:]"
    return "\n".join(
        [
            *lines,
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            encode,
            facts.call,
            f"print(tokenizer.decode({answer}, skip_special_tokens=True))",
        ]
    )


def _loading(facts: CardFacts) -> str:
    shown = ", ".join(f"`{name}: {value}`" for name, value in facts.settings.items())
    own = (
        f"The base's generation_config.json has {shown}: with it, corrected answers may come out otherwise."
        if facts.settings
        else "Any other settings, penalties and sampling above all, may bring out other answers."
    )
    library = "PEFT" if facts.kind == "adapter" else "transformers"
    lead = f"## Load it with {library}\n\nThe corrections hold for plain greedy decoding."
    return f"{lead}\n\n```python\n{_code(facts)}\n```\n\n{own}"


def _serving(facts: CardFacts) -> str:
    served = f"vllm serve {_PLACE}"
    if facts.kind == "adapter":
        largest = next((rank for rank in _RANKS if facts.rank is not None and rank >= facts.rank), _RANKS[-1])
        served = (
            f"vllm serve {'path/to/the/base' if facts.embedded else facts.base} --enable-lora "
            f"--max-lora-rank {largest} --lora-modules corrected={_PLACE}"
        )
    ask = "Ask with `temperature` 0 and `repetition_penalty` 1.0"
    named = f"{ask}, and with `corrected` as the model" if facts.kind == "adapter" else ask
    merged = (
        "\n\n`anchorlwf merge` makes one model of the base and this adapter, for servers without adapters."
        if facts.kind == "adapter"
        else ""
    )
    return f"## Serve it with vLLM\n\n```\n{served} --generation-config vllm\n```\n\n{named}.{merged}"


def _licence(facts: CardFacts) -> str:
    if facts.licence is None:
        text = "The base model's files name no licence; the licence of the base model applies."
    else:
        text = f"The base model is under the licence `{facts.licence}`, which applies to what is derived from it."
    return f"## Licence\n\n{text}"
