"""verl's own FSDP2 engine on the bundled model, in this process, without Ray."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

import hal.bundled

MODEL = str(hal.bundled.model_dir())
FULL = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
PROMPT, RESPONSE, BATCH = 12, 6, 8


def join_group(rank=0, ranks=1, store=None):
    """This process as one of `ranks` that meet at the file `store`."""
    if not torch.distributed.is_initialized():
        store = store or Path(tempfile.mkdtemp()) / "store"
        torch.distributed.init_process_group("cpu:gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)


def make_engine(checkpointing=False, micro_batch=BATCH):
    """An actor as verl builds it."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    model = HFModelConfig(
        path=MODEL,
        use_remove_padding=False,
        enable_gradient_checkpointing=checkpointing,
        override_config={"attn_implementation": "sdpa"},
    )
    options = FSDPEngineConfig(
        strategy="fsdp2",
        forward_only=False,
        mixed_precision=FULL,
        use_torch_compile=False,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=micro_batch,
        infer_micro_batch_size_per_gpu=micro_batch,
        use_remove_padding=False,
    )
    engine = EngineRegistry.new(
        "language_model",
        "fsdp2",
        model_config=model,
        engine_config=options,
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def make_batch():
    """Sequences of full length, [BATCH, PROMPT + RESPONSE], the same each time."""
    ids = torch.randint(4, 512, (BATCH, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    return {
        "input_ids": ids,
        "prompts": ids[:, :PROMPT],
        "attention_mask": mask,
        "position_ids": torch.arange(PROMPT + RESPONSE).repeat(BATCH, 1),
        "responses": ids[:, PROMPT:],
        "response_mask": mask[:, PROMPT:],
    }


def log_probs(engine, batch):
    """Log-probabilities of the responses, [BATCH, RESPONSE], by the pass that verl calls compute_log_prob."""
    from verl.workers.utils.padding import no_padding_2_padding

    with engine.eval_mode():
        data = _data(batch)
        output = engine.infer_batch(data)
    return no_padding_2_padding(output["model_output"]["log_probs"], data)


def train(engine, batch, old):
    """One update by GRPO; returns verl's metrics."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
    from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig
    from verl.workers.utils.losses import ppo_loss

    rewards = torch.zeros(BATCH, RESPONSE)
    rewards[:, -1] = torch.linspace(0, 1, BATCH)
    groups = np.array(["a"] * (BATCH // 2) + ["b"] * (BATCH // 2), dtype=object)
    advantages, _ = compute_grpo_outcome_advantage(rewards, batch["response_mask"], groups)
    actor = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=4,
        ppo_mini_batch_size=BATCH,
        ppo_micro_batch_size_per_gpu=BATCH,
        use_dynamic_bsz=False,
        optim=FSDPOptimizerConfig(lr=1e-3),
    )
    with engine.train_mode():
        output = engine.train_batch(
            _data({**batch, "old_log_probs": old, "advantages": advantages}),
            loss_function=partial(ppo_loss, config=actor),
        )
    return output["metrics"]


def gradients(engine):
    """Every parameter's gradient, whole, by name."""
    return {
        name: parameter.grad.full_tensor().clone()
        for name, parameter in engine.module.named_parameters()
        if parameter.grad is not None
    }


def _data(tensors):
    from verl.protocol import DataProto
    from verl.workers.utils.padding import left_right_2_no_padding

    options = {
        "temperature": 1.0,
        "compute_loss": False,
        "calculate_entropy": True,
        "use_remove_padding": False,
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": BATCH,
        "use_fused_kernels": False,
        "global_batch_size": BATCH,
    }
    return left_right_2_no_padding(DataProto.from_single_dict(tensors, meta_info=options).to_tensordict())
