"""A whole run of `python -m verl.trainer.main_ppo` on the bundled model, small enough for a host."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas

import hal.bundled
from hal.bundled.arithmetic import problems

MODEL = str(hal.bundled.model_dir())
FULL = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
REWARD = Path(__file__).with_name("reward.py")
TRAIN_BATCH = 8
STEPS_PER_EPOCH = 3


def write_data(folder: Path) -> None:
    """Problems in verl's form: three steps an epoch, and a batch to validate on."""
    for name, split, count in (("train", "train", TRAIN_BATCH * STEPS_PER_EPOCH), ("val", "held-out", 8)):
        rows = [
            {
                "data_source": "bundled",
                "prompt": list(problem.messages),
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": problem.answer},
                "extra_info": {"index": index},
            }
            for index, problem in enumerate(problems(split, count, seed=1))
        ]
        pandas.DataFrame(rows).to_parquet(folder / f"{name}.parquet")


def options(folder: Path, ranks: int = 1) -> dict[str, object]:
    """What every run here has; prompts are 64 tokens at most, replies 6."""
    actor, rollout, reference = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref"))
    return {
        "algorithm.adv_estimator": "grpo",
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "val.parquet",
        "data.train_batch_size": TRAIN_BATCH,
        "data.max_prompt_length": 64,
        "data.max_response_length": 6,
        "data.dataloader_num_workers": 0,
        "actor_rollout_ref.model.path": MODEL,
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"+{actor}.fsdp_config.mixed_precision": FULL,
        f"{actor}.ppo_mini_batch_size": TRAIN_BATCH,
        f"{actor}.ppo_micro_batch_size_per_gpu": 16 // ranks,
        f"{actor}.optim.lr": 1e-5,
        f"{actor}.use_kl_loss": True,
        f"{reference}.fsdp_config.model_dtype": "fp32",
        f"{reference}.fsdp_config.use_torch_compile": False,
        f"+{reference}.fsdp_config.mixed_precision": FULL,
        f"{reference}.log_prob_micro_batch_size_per_gpu": 32 // ranks,
        f"{rollout}.name": "transformers",
        f"{rollout}.n": 4,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.dtype": "float32",
        f"{rollout}.free_cache_engine": False,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": 32 // ranks,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.n_gpus_per_node": ranks,
        f"{rollout}.agent.num_workers": 1,
        "reward.num_workers": 1,
        "reward.custom_reward_function.path": REWARD,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": ranks,
        "trainer.nnodes": 1,
        "trainer.logger": '["console"]',
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.resume_mode": "disable",
        "trainer.total_epochs": 2,
        "trainer.v1.trainer_mode": "aqn_sync",
        "ray_kwargs.ray_init.num_cpus": 8,
        "+ray_kwargs.ray_init.num_gpus": ranks,
        "+ray_kwargs.ray_init.include_dashboard": False,
    }


VLLM = {
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.rollout.enforce_eager": True,
    "+actor_rollout_ref.rollout.enable_sleep_mode": False,
    "actor_rollout_ref.rollout.max_model_len": 128,
    "actor_rollout_ref.rollout.max_num_seqs": 32,
    "actor_rollout_ref.rollout.max_num_batched_tokens": 512,
    "actor_rollout_ref.rollout.load_format": "auto",
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes": 16,
}


class Run:
    """A finished run: its exit status, what it printed, and verl's metrics, a dict a step by the step's number."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output
        self.metrics: dict[int, dict[str, float]] = {}
        for line in output.splitlines():
            found = re.search(r"step:(\d+) - (.*)", line)
            if found:
                pairs = (entry.rpartition(":") for entry in found[2].split(" - "))
                values = {name.strip(): _number(value) for name, _, value in pairs}
                self.metrics.setdefault(int(found[1]), {}).update(values)

    def series(self, name: str) -> list[float]:
        """A metric step by step."""
        return [values[name] for _, values in sorted(self.metrics.items()) if name in values]


def train(folder: Path, *changes: dict[str, object], ranks: int = 1, timeout: float = 1500) -> Run:
    """Run verl's own main with these changes to the options; all its processes are ended afterwards."""
    chosen = options(folder, ranks)
    for change in changes:
        chosen.update(change)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *(f"{key}={value}" for key, value in chosen.items())]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        start_new_session=True,
        env={**os.environ, "RAY_DEDUP_LOGS": "0"},
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"the run took longer than {timeout} s:\n{output[-4000:]}") from None
    return Run(process.returncode, output)


def _number(text: str) -> float:
    try:
        return float(re.sub(r"np\.\w+\((.*)\)", r"\1", text.strip()))
    except ValueError:
        return float("nan")
