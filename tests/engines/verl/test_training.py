"""Whole runs of verl's own main, unmodified, with our module named in VERL_USE_EXTERNAL_MODULES."""

from __future__ import annotations

import pytest

from tests.engines.verl.run import STEPS_PER_EPOCH, VLLM, train, write_data

pytestmark = pytest.mark.timeout(1800)

ZONE = {"+deadzone.layer": 7, "+deadzone.threshold": 0.1, "+deadzone.scope": "token"}
NOISE = {
    "+aqn.sigma": 0.05,
    "+aqn.schedule": "epoch_aware",
    "+aqn.phases": "[rollout,actor_forward,actor_backward]",
}
# Epoch one falls from 0.05 to 0.01, epoch two from 0.01 to 0.0005, linearly over three steps each.
SIGMAS = [0.05, 0.03, 0.01, 0.01, 0.00525, 0.0005]
ONE_EPOCH = [0.05, 0.02525, 0.0005]  # a run of one epoch falls from the first sigma to the last
AGREEMENT = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """Two epochs with noise in rollout, forward and backward pass, a dead zone, validation and checkpoints."""
    return train(
        folder, NOISE, ZONE, {"trainer.test_freq": 3, "trainer.save_freq": 3, "trainer.val_before_train": True}
    )


def test_the_run_ends_well_and_trains(whole):
    assert whole.status == 0, whole.output[-4000:]
    assert sorted(whole.metrics) == list(range(2 * STEPS_PER_EPOCH + 1))  # step 0 is the validation before
    assert all(norm > 0 for norm in whole.series("actor/grad_norm"))


def test_sigma_follows_the_trainers_steps_and_begins_again_with_the_epoch(whole):
    assert whole.series("aqn/sigma") == pytest.approx(SIGMAS)


def test_actor_and_rollout_are_hit_in_every_step(whole):
    for phase in ("rollout", "actor_forward", "actor_backward"):
        assert min(whole.series(f"aqn/hits/{phase}")) > 0, phase
        assert len(whole.series(f"aqn/hits/{phase}")) == len(SIGMAS)
    # Two passes, old log-probabilities and update, of 7 linear modules in each of 12 layers.
    assert set(whole.series("aqn/hits/actor_forward")) <= {84.0 * passes for passes in range(2, 8)}
    assert whole.series("aqn/deadzone/calls_rollout")[-1] > 0
    assert whole.series("aqn/deadzone/calls_actor")[-1] > 0


def test_validation_and_the_reference_policy_are_clean(whole):
    assert whole.series("aqn/hits/reference") == [0.0] * len(SIGMAS)
    assert whole.series("aqn/hits/validation") == [0.0] * 3  # before, after step 3, after step 6
    assert max(whole.series("actor/kl_loss")) >= 0  # the reference policy did run


def test_rollout_and_trainer_agree_under_noise(whole):
    assert max(whole.series("training/rollout_probs_diff_max")) < AGREEMENT


def test_a_resumed_run_continues_the_schedule(whole, folder):
    changes = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": folder / "checkpoints/global_step_3"}
    rest = train(folder, NOISE, ZONE, changes)
    assert rest.status == 0, rest.output[-4000:]
    assert sorted(rest.metrics) == [4, 5, 6]
    assert rest.series("aqn/sigma") == pytest.approx(SIGMAS[3:])
    assert max(rest.series("training/rollout_probs_diff_max")) < AGREEMENT


def test_two_ranks_carry_the_noise_of_their_rollouts(folder):
    """Each rank trains on what two rollout servers wrote: agreement says that all four drew the same noise."""
    run = train(folder, NOISE, ZONE, {"trainer.total_epochs": 1}, ranks=2)
    assert run.status == 0, run.output[-4000:]
    assert run.series("aqn/sigma") == pytest.approx(ONE_EPOCH)
    assert min(run.series("aqn/hits/actor_forward")) > 0
    assert max(run.series("training/rollout_probs_diff_max")) < AGREEMENT


def test_noise_in_the_rollout_alone_shows_as_disagreement(folder):
    """The control: what the tests above call agreement is none where only one side carries the noise."""
    alone = {"+aqn.sigma": 1.0, "+aqn.phases": "[rollout]", "trainer.total_epochs": 1}
    run = train(folder, alone)
    assert run.status == 0, run.output[-4000:]
    assert min(run.series("training/rollout_probs_diff_max")) > 100 * AGREEMENT
    assert run.series("aqn/hits/actor_forward") == [0.0] * STEPS_PER_EPOCH


def test_verls_own_vllm_rollout_agrees_with_the_actor(folder):
    run = train(folder, VLLM, NOISE, ZONE, {"trainer.total_epochs": 1, "trainer.test_freq": 3})
    assert run.status == 0, run.output[-4000:]
    assert run.series("aqn/sigma") == pytest.approx(ONE_EPOCH)
    assert min(run.series("aqn/hits/rollout")) > 0
    assert run.series("aqn/hits/validation") == [0.0]
    assert max(run.series("training/rollout_probs_diff_max")) < AGREEMENT


def test_a_guides_file_is_read(folder):
    (folder / "aqn_config.yaml").write_text(
        "aqn: {enabled: true, layer_specific: true, base_sigma: 0.05, layer_sigmas: {7: 0.1}, schedule: constant,\n"
        "  high_priority_layers: [7]}\n"
        "srdd_metadata: {num_layers: 12}\n"
    )
    run = train(folder, {"+aqn_config": folder / "aqn_config.yaml", "trainer.total_epochs": 1})
    assert run.status == 0, run.output[-4000:]
    assert run.series("aqn/sigma") == pytest.approx([0.05] * 3)
    assert set(run.series("aqn/hits/actor_forward")) <= {7.0 * passes for passes in range(2, 8)}


def test_a_run_with_a_misspelt_key_is_refused_before_it_begins(folder):
    run = train(folder, {"+aqn.sigma": 0.05, "+aqn.shedule": "constant"})
    assert run.status != 0
    assert "unknown key 'aqn.shedule': did you mean 'schedule'?" in run.output
    assert not run.metrics
