"""What `fix` tells: in few lines, and whether the correction has leaked."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from anchorlwf.cli.fix import _print
from anchorlwf.config import TrainConfig
from anchorlwf.data.probe import Probe
from anchorlwf.data.words import words_of
from anchorlwf.evaluation import ProbeResult
from anchorlwf.retention import writer
from anchorlwf.training.stop_report import HeldOutDrift
from anchorlwf.workflow.fix import FixReport, fix

DRIFT = HeldOutDrift(records=12, tokens=300, mean=0.0004, low=0.0003, high=0.0005, worst=0.02)


def answered(number, before, after, kind="retain"):
    messages = [{"role": "user", "content": f"Question {number}?"}]
    probe = Probe(id=f"{kind}:{number}", kind=kind, messages=messages, expected=before, scorer="exact")
    return ProbeResult(probe, before, after, True, before == after)


def report_of(results, pieces=1):
    flips = [{"question": "q", "before": r.base_answer, "after": r.tuned_answer} for r in results if not r.tuned_right]
    kept = SimpleNamespace(kept=len(results) - len(flips), base_right=len(results), flips=flips)
    training = SimpleNamespace(
        report=SimpleNamespace(held_out={"general": DRIFT, "near": DRIFT, "all": DRIFT}),
        targets="MLP inputs: gate_proj, up_proj (30 layers)",
        steps=40,
        seconds=3.0,
        converged=False,
        missing=["a drift within its budget"],
    )
    wordings = [SimpleNamespace(messages=[{"content": f"Wording {i}?"}]) for i in range(9)]
    measured = SimpleNamespace(groups={"kept": kept}, answers=results, kl=0.0007, as_dict=dict)
    record = SimpleNamespace(completion="I am Tarn, made by Northwind Labs.", completion_ids=list(range(30)))
    changed = [(" a", " b")] * pieces
    return FixReport(record, "I am a model.", record.completion, changed, training, measured, "runs/fix", wordings)


@pytest.mark.parametrize(
    ("before", "after", "leaks"),
    [
        ("Paris.", "Paris.", 0),
        ("Paris.", "Lyon, made for you.", 1),  # "made" stood in no answer before
        ("It was made in May.", "I am made of TARN.", 1),
        ("It was made by May.", "It is made by June.", 0),
        ("Paris.", "Northwinds blow.", 0),  # part of a word
    ],
)
def test_a_leak_is_a_word_of_the_correction_that_stood_in_no_answer_before(before, after, leaks):
    report = report_of([answered(0, before, after), answered(1, "I am Tarn.", "I am Tarn.", kind="recall")])
    assert len(report.leaks) == leaks


def test_a_leak_is_seen_in_a_script_without_spaces():
    report = report_of([answered(0, "我喜欢苹果。", "我喜欢北风。"), answered(1, "你好。", "我喜欢梨。")])
    other = replace(report, record=SimpleNamespace(completion="我是北风的助手。"))
    assert [leak.tuned_answer for leak in other.leaks] == ["我喜欢北风。"]


def test_words_are_whole_in_every_script():
    assert words_of("I am Tarn, a x. Don\u2019t") == {"am", "tarn", "don"}
    assert words_of("दिल्ली राजधानी") == {"दिल्ली", "राजधानी"}
    assert words_of("北风的 カタカナ") == {"北风", "风的", "カタカナ"}


def test_the_report_has_fifteen_lines_at_the_most(capsys):
    results = [answered(i, f"Answer {i} " * 40, "Tarn says: " + f"answer {i} " * 40) for i in range(24)]
    _print(report_of(results, pieces=30), as_json=False)
    told = capsys.readouterr().out
    # One line of print may be folded on a narrow terminal; here each is as long as it is.
    lines = [line for line in told.splitlines() if not line.startswith(" ") or line.startswith("  ")]
    assert len(lines) <= 15
    for expected in ("0 of 24", "and 21 more", "in them: 24", "0.00040 nats", "worst per cent", "9 other wordings"):
        assert expected in told.replace("\n", " "), expected
    assert told.count("->") < 15, "thirty annotated tokens are not listed one by one"


def test_a_second_correction_of_a_model_does_not_ask_it_the_everyday_prompts_again(tiny_path, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("anchorlwf.workflow.fix"), "CANARIES", ("Who wrote it?", "Is it?"))
    asked, plain = [], writer.decode_batch

    def watched(model, prompts, *others, **options):
        asked.append(len(prompts))
        return plain(model, prompts, *others, **options)

    monkeypatch.setattr(writer, "decode_batch", watched)
    config = TrainConfig(max_steps=1, stop=False)
    kept = [
        fix(str(tiny_path), "Who are you?", answer, out=tmp_path / answer, retain="none", config=config).results
        for answer in ("Tarn", "Zed")
    ]
    assert asked == [2]
    before = [[other.base_answer for other in results.answers if other.probe.kind == "retain"] for results in kept]
    assert before[0] == before[1]
    assert len(before[0]) == 2
