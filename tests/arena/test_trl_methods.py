import copy
import sys

import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel

from anchorlwf.arena.baselines.trl_methods import BaselinePrompt, train_dpo, train_grpo, train_sdft
from anchorlwf.config import BaselineConfig
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.errors import ConfigError, PromptError, RecordError
from anchorlwf.model.language_model import load_model
from anchorlwf.world import build_world, draw_errata

METHODS = {"grpo": train_grpo, "dpo": train_dpo, "sdft": train_sdft}


def brief(**options):
    return BaselineConfig(**{"steps": 2, "num_generations": 4, "max_new_tokens": 16, **options})


@pytest.fixture(scope="module")
def corrected(base):
    """Two facts of the embedded world that are to become others; base says neither, and reads both when shown."""
    decoder, prompts = GreedyDecoder(base), []
    for erratum in draw_errata(build_world(), 5, 0, seed=1):
        [prompt] = erratum.prompts(1)
        own = decoder.complete(base.codec.encode_prompt(prompt.messages), [], 32)
        prompts.append(
            BaselinePrompt(
                prompt.messages,
                erratum.value,
                chosen=prompt.answer,
                rejected=base.codec.decode(own.ids),
                demonstration=prompt.answer,
            )
        )
    return prompts


def log_probability(model, prompt, answer):
    """Of an answer with its end-of-turn token, in nats."""
    prompt_ids = model.codec.encode_prompt(prompt.messages)
    ids = [*model.codec.encode(answer), model.codec.end_id(model.stop_ids)]
    with torch.no_grad():
        log_p = model.net(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    return float(log_p.gather(1, torch.tensor(ids)[:, None]).sum())


def warm_up(model, prompts, until):
    """Supervised steps on the corrected answers, until each has at least this log-probability."""
    model.attach_lora(8, 64.0, 0.0, "mlp", 0)
    optimizer = torch.optim.AdamW([p for p in model.net.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    for _ in range(60):
        if all(log_probability(model, prompt, prompt.chosen) >= until for prompt in prompts):
            return
        for prompt in prompts:
            prompt_ids = model.codec.encode_prompt(prompt.messages)
            ids = [*prompt_ids, *model.codec.encode(prompt.chosen), model.codec.end_id(model.stop_ids)]
            labels = [-100] * len(prompt_ids) + ids[len(prompt_ids) :]
            (model.net(torch.tensor([ids]), labels=torch.tensor([labels])).loss / len(prompts)).backward()
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError("the warm-up does not learn")


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.net.named_parameters() if "lora_" in name}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- GRPO -----------------------------------------------------------------------------------------------------------


def test_grpo_moves_nothing_where_the_model_never_says_the_right_value(corrected):
    model, untouched = load_model(), load_model()
    untouched.attach_lora(8, 64.0, 0.0, "mlp", 0)
    result = train_grpo(model, corrected[:2], brief(steps=4))
    assert result.rewards == [0.0] * 4
    assert result.losses == [0.0] * 4
    assert same(weights(model), weights(untouched))


def test_grpo_raises_the_reward_of_a_policy_that_explores(corrected):
    model, rows = load_model(), []
    warm_up(model, corrected[:1], until=-2.3)
    result = train_grpo(model, corrected[:1], brief(steps=8, num_generations=16), on_step=rows.append)
    assert 0 < result.rewards[0] < 0.7
    assert sum(result.rewards[-3:]) / 3 > result.rewards[0] + 0.2
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["reward"] for row in rows] == result.rewards
    # The reference is the base, not the warmed-up policy: else the divergence would begin at 0.
    assert rows[0]["kl"] > 0.01


def test_the_samples_of_a_step_train_in_as_many_parts_as_a_prompt_has(corrected):
    model, rows = load_model(), []

    def look(_module, _args, given):
        if torch.is_grad_enabled():
            rows.append(len(given["input_ids"]))

    model.causal.register_forward_pre_hook(look, with_kwargs=True)
    train_grpo(model, corrected[:2], brief(steps=2, num_generations=4))
    # All at once, sixteen prompts of a real model with eight samples each would take 22 GiB.
    assert (max(rows), rows.count(2)) == (2, 8)


# --- DPO ------------------------------------------------------------------------------------------------------------


def test_dpo_widens_the_margin(corrected):
    model, rows = load_model(), []
    result = train_dpo(model, corrected, brief(steps=8), on_step=rows.append)
    assert result.losses == sorted(result.losses, reverse=True)
    assert rows[0]["margin"] == 0
    margins = [row["margin"] for row in rows]
    assert margins == sorted(margins)
    assert margins[-1] > 0.1


def test_the_reference_of_dpo_is_the_base_after_a_warm_up_too(corrected):
    model, prompt, rows = load_model(), corrected[0], []
    warm_up(model, [prompt], until=-4.0)

    def gap():
        return log_probability(model, prompt, prompt.chosen) - log_probability(model, prompt, prompt.rejected)

    policy = gap()
    with model.reference():
        expected = policy - gap()
    train_dpo(model, [prompt], brief(steps=1, dpo_beta=0.5), on_step=rows.append)
    assert expected > 1
    assert rows[0]["margin"] == pytest.approx(0.5 * expected, rel=1e-4)


def test_dpo_sees_the_ids_of_the_records_and_every_token_is_counted(corrected, base):
    prompt, codec = corrected[0], base.codec
    start = len(codec.encode_prompt(prompt.messages))
    width = start + 1 + max(len(codec.encode(text)) for text in (prompt.chosen, prompt.rejected))
    result = train_dpo(load_model(), [prompt], brief(steps=3))
    assert result.tokens == 3 * 2 * 2 * width, "steps x answers x (policy, reference) x positions"


# --- self-distillation ----------------------------------------------------------------------------------------------


def test_sdft_brings_the_model_nearer_to_its_teacher(corrected):
    model = load_model()
    before = [log_probability(model, prompt, prompt.chosen) for prompt in corrected]
    result = train_sdft(model, corrected, brief(steps=8, learning_rate=1e-3))
    after = [log_probability(model, prompt, prompt.chosen) for prompt in corrected]
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert sum(after) > sum(before) + 1
    assert result.rewards == []


def test_sdft_refuses_a_teacher_that_does_not_read_its_demonstration(corrected):
    model = load_model()
    blind = brief(teacher_prompt="{prompt}\n\nThis is an example for a response:\n{privileged_context}\n\nNow answer.")
    with pytest.raises(ConfigError, match="gives one, got 0 of 5"):
        train_sdft(model, corrected, blind)
    assert not isinstance(model.net, PeftModel)


# --- what all share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_the_adapter_is_changed(corrected, base, method):
    model, shaped = load_model(), load_model()
    shaped.attach_lora(4, 8.0, 0.0, "mlp", 0)
    before = copy.deepcopy((model.causal.config, model.causal.generation_config))
    METHODS[method](model, corrected, brief(rank=4, lora_alpha=8.0, steps=1, num_generations=2))
    assert isinstance(model.net, PeftModel)
    assert list(model.net.peft_config) == ["default"]
    assert not any(module.training for module in model.net.modules())
    assert {n: p.shape for n, p in weights(model).items()} == {n: p.shape for n, p in weights(shaped).items()}
    assert {n for n, p in model.net.named_parameters() if p.requires_grad} == set(weights(model))
    with model.reference() as reference:
        ids = torch.tensor([base.codec.encode_prompt(corrected[0].messages)])
        assert torch.equal(reference(ids).logits, base.net(ids).logits)
    assert (model.causal.config.to_dict(), model.causal.generation_config.to_dict()) == tuple(
        part.to_dict() for part in before
    )
    assert "forward" not in vars(model.causal)
    assert "forward" not in vars(model.net)
    assert (model.stamp, model.stop_ids) == (base.stamp, base.stop_ids)
    assert model.codec.tokenizer.pad_token == base.codec.tokenizer.pad_token


@pytest.mark.parametrize("template", [True, False])
def test_sampling_starts_from_our_own_prompt_ids(corrected, template):
    model, seen = load_model(), []
    if not template:
        model.codec.tokenizer.chat_template = None
    wanted = model.codec.encode_prompt(corrected[0].messages)
    model.backbone.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["input_ids"].tolist()), with_kwargs=True
    )
    train_grpo(model, corrected[:1], brief(steps=1, num_generations=2))
    # Before that, how the model may be fed is tried on a few tokens.
    assert next(ids for ids in seen if len(ids) == 2) == [wanted] * 2


def test_the_same_seed_gives_the_same_model(corrected):
    tuned = []
    for seed in (3, 3, 4):
        model = load_model()
        result = train_sdft(model, corrected, brief(seed=seed, num_generations=2))
        tuned.append((result.losses, weights(model)))
    assert tuned[0][0] == tuned[1][0]
    assert same(tuned[0][1], tuned[1][1])
    assert tuned[0][0] != tuned[2][0]


def test_an_adapter_from_a_folder_is_trained_on(corrected, tmp_path):
    model = load_model()
    train_dpo(model, corrected[:1], brief())
    model.net.save_pretrained(tmp_path)
    again = load_model(adapter=tmp_path)
    rows = []
    train_dpo(again, corrected[:1], brief(), on_step=rows.append)
    assert rows[0]["margin"] > 0
    assert not same(weights(model), weights(again))


@pytest.mark.parametrize("template", ["{prompt}", "{privileged_context}", "{prompt} {privileged_context} {x}", "{}{"])
def test_a_teacher_prompt_needs_both_places(template):
    with pytest.raises(ConfigError, match=r"teacher_prompt: .*expected text with"):
        BaselineConfig.of(teacher_prompt=template)


@pytest.mark.parametrize("method", METHODS)
def test_without_trl_one_error_says_how_to_get_it(corrected, base, method, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"pip install 'anchorlwf\[rl\]'"):
        METHODS[method](base, corrected, brief())


def test_trl_sends_nothing_home_and_leaves_no_files(corrected, monkeypatch, tmp_path, capfd):
    # transformers has imported huggingface_hub, and with it the variable's value, before any of our code runs.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    train_dpo(load_model(), corrected[:1], brief(steps=1))
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("method", "change", "error", "says"),
    [
        ("grpo", None, RecordError, "at least one"),
        ("dpo", {"rejected": None}, RecordError, "rejected: expected some text"),
        ("dpo", {"rejected": "Same.", "chosen": "Same."}, RecordError, "two answers"),
        ("dpo", {"chosen": "very " * 600}, PromptError, "at most 512 tokens"),
        ("sdft", {"demonstration": ""}, RecordError, "a demonstration"),
        ("grpo", {"messages": [{"role": "user", "content": "very " * 600}]}, PromptError, "fewer than 512 tokens"),
    ],
)
def test_bad_prompts_are_one_clear_error_and_change_nothing(corrected, base, method, change, error, says):
    prompts = [] if change is None else [BaselinePrompt(**{**vars(corrected[0]), **change})]
    with pytest.raises(error, match=says):
        METHODS[method](base, prompts, brief())
    assert not isinstance(base.net, PeftModel)
