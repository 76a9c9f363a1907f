"""Training by the real Trainer and the real GRPOTrainer on the bundled model, with noise that follows their steps."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

import hal.bundled
from aqn import AqnConfig
from aqn.integrations.transformers import AqnCallback
from aqn.integrations.trl import watch_rollouts
from hal import HookError
from hal.bundled.arithmetic import problems
from hal.errors import EngineError

MODEL = hal.bundled.model_dir()
STEPS, EPOCHS = 4, 2
# Epoch one falls from 0.05 to 0.01, epoch two from 0.01 to 0.0005, in two steps each.
SIGMAS = [0.05, 0.01, 0.01, 0.0005]
NOISE = {"sigma": 0.05, "schedule": "epoch_aware", "phases": ["rollout", "actor_forward", "actor_backward"]}
ZONE = {"layer": 7, "threshold": 0.3, "scope": "token"}
LINEARS = 12 * 7


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def supervised(model, tokenizer, folder, callback, **options):
    """Two epochs of two steps on four short sequences."""
    texts = [tokenizer(problem.question)["input_ids"][:6] for problem in problems("train", 4, 1)]
    rows = [{"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)} for ids in texts]
    settings = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "per_device_train_batch_size": 2,
            "num_train_epochs": EPOCHS,
            "logging_steps": 1,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 0,
            "dataloader_pin_memory": False,
            **options,
        }
    )
    return Trainer(model=model, args=settings, train_dataset=rows, eval_dataset=rows, callbacks=[callback])


def grpo(model, tokenizer, folder, *callbacks, **options):
    """Two epochs of two steps, eight completions each."""
    asked = problems("train", 4, 1)

    def reward(completions, answer, **_):
        texts = [completion[0]["content"] for completion in completions]
        return [float(text.strip() == right) + len(text) / 100 for text, right in zip(texts, answer, strict=True)]

    data = Dataset.from_dict({"prompt": [p.messages for p in asked], "answer": [p.answer for p in asked]})
    settings = GRPOConfig(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 5,
            "num_train_epochs": EPOCHS,
            "logging_steps": 1,
            "learning_rate": 1e-5,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 0,
            "gradient_checkpointing": False,
            "beta": 0.02,
            **options,
        }
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def series(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_sigma_follows_the_trainers_steps(model, tokenizer, tmp_path):
    callback = AqnCallback(AqnConfig.parse({"aqn": NOISE}))
    before = hooks(model)
    trainer = supervised(model, tokenizer, tmp_path, callback)
    trainer.train()
    assert series(trainer, "aqn/sigma") == pytest.approx(SIGMAS)
    assert series(trainer, "aqn/hits/actor_forward") == [LINEARS] * STEPS
    assert series(trainer, "aqn/hits/actor_backward") == [2 * LINEARS] * STEPS
    assert hooks(model) == before


def test_evaluation_is_clean(model, tokenizer, tmp_path):
    callback = AqnCallback(AqnConfig.parse({"aqn": {**NOISE, "phases": ["actor_forward"]}}))
    trainer = supervised(model, tokenizer, tmp_path, callback, eval_strategy="steps", eval_steps=1, learning_rate=0.0)
    trainer.train()
    clean = supervised(model, tokenizer, tmp_path, AqnCallback(callback.config)).evaluate()["eval_loss"]
    assert series(trainer, "eval_loss") == pytest.approx([clean] * STEPS)
    assert series(trainer, "loss") != pytest.approx(series(trainer, "eval_loss"), rel=1e-3)
    assert {hit.phase for hit in callback.counts} == {"actor_forward"}


def test_a_resumed_run_continues_the_schedule(model, tokenizer, tmp_path):
    config = AqnConfig.parse({"aqn": NOISE})
    supervised(model, tokenizer, tmp_path, AqnCallback(config), save_strategy="steps", save_steps=2).train()
    fresh = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    trainer = supervised(fresh, tokenizer, tmp_path, AqnCallback(config))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert series(trainer, "aqn/sigma")[-2:] == pytest.approx(SIGMAS[2:])


def test_a_failed_run_leaves_no_hooks(model, tokenizer, tmp_path):
    before = hooks(model)
    callback = AqnCallback(AqnConfig.parse({"aqn": NOISE}))
    trainer = supervised(model, tokenizer, tmp_path, callback)
    trainer.compute_loss = _fail
    with pytest.raises(RuntimeError, match="ours"), callback:
        trainer.train()
    assert hooks(model) == before


def _fail(*_args, **_options):
    raise RuntimeError("ours")


def test_noise_that_hit_nothing_is_an_error(model, tokenizer, tmp_path):
    callback = AqnCallback(AqnConfig.parse({"aqn": {"sigma": 0.1, "phases": ["rollout"]}}))
    with pytest.raises(HookError, match="noise hit nothing"):
        supervised(model, tokenizer, tmp_path, callback).train()


def test_rollouts_and_training_have_their_phases(model, tokenizer, tmp_path):
    callback = AqnCallback(AqnConfig.parse({"aqn": NOISE, "deadzone": ZONE}))
    trainer = grpo(model, tokenizer, tmp_path, callback, eval_strategy="steps", eval_steps=2)
    watch_rollouts(trainer)
    trainer.train()
    assert series(trainer, "aqn/sigma") == pytest.approx(SIGMAS)
    assert min(series(trainer, "aqn/hits/rollout")) >= LINEARS
    assert series(trainer, "aqn/hits/actor_forward") == [LINEARS] * STEPS
    assert series(trainer, "aqn/hits/actor_backward") == [2 * LINEARS] * STEPS
    assert {hit.phase for hit in callback.counts} == set(NOISE["phases"])
    assert series(trainer, "eval_reward")
    assert max(series(trainer, "grad_norm")) > 0
    assert hooks(trainer.ref_model) == 0


def test_the_update_sees_the_policy_that_wrote(model, tokenizer, tmp_path):
    """One step on policy: the ratio of the two is 1 where both carry the same noise, and is not where one does."""
    ratios = {}
    for phases in (["rollout", "actor_forward"], ["rollout"]):
        callback = AqnCallback(AqnConfig.parse({"aqn": {"sigma": 1.0, "phases": phases}}))
        trainer = grpo(model, tokenizer, tmp_path, callback, max_steps=1)
        watch_rollouts(trainer)
        ratios[len(phases)] = _log_ratio(trainer, callback)
    assert ratios[2] < 1e-4
    assert ratios[1] > 1e-2


def _log_ratio(trainer, callback):
    """The largest difference between a completion's log-probability when written and when learnt from."""
    written, learnt = {}, {}
    write = trainer._generate_single_turn
    score = trainer._get_per_token_logps_and_entropies

    def keep(prompts, *args, **options):
        completions, logprobs = write(prompts, *args, **options)
        with torch.no_grad(), callback.injection.during("rollout"):
            for prompt, completion in zip(prompts, completions, strict=True):
                logits = trainer.model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
                written[(*prompt, *completion)] = logits.log_softmax(-1)[range(len(completion)), completion]
        return completions, logprobs

    def remember(model, ids, mask, *args, **options):
        found = score(model, ids, mask, *args, **options)
        if model is not trainer.ref_model:
            for row, real, values in zip(ids, mask.bool(), found[0].detach(), strict=True):
                learnt[tuple(row[real].tolist())] = values
        return found

    trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies = keep, remember
    trainer.train()
    assert set(learnt) == set(written)
    assert len({len(sequence) for sequence in learnt}) > 1  # so there was padding
    return max(float((learnt[key][: len(values)] - values).abs().max()) for key, values in written.items())


def test_runs_with_a_clean_half_are_refused(model, tokenizer, tmp_path):
    config = AqnConfig.parse({"aqn": NOISE})
    with pytest.raises(EngineError, match="has no AqnCallback"):
        watch_rollouts(grpo(model, tokenizer, tmp_path))
    trainer = grpo(model, tokenizer, tmp_path, AqnCallback(config))
    trainer.use_vllm = True
    with pytest.raises(EngineError, match="use_vllm is True"):
        watch_rollouts(trainer)
    trainer.use_vllm, trainer.ref_model = False, None
    with pytest.raises(EngineError, match="beta is not 0"):
        watch_rollouts(trainer)


def test_a_trl_without_the_hook_point_is_refused(model, tokenizer, tmp_path):
    trainer = supervised(model, tokenizer, tmp_path, AqnCallback(AqnConfig.parse({"aqn": NOISE})))
    with pytest.raises(EngineError, match=r"has no _generate_single_turn.* install 'trl>=1\.16,<2'"):
        watch_rollouts(trainer)
