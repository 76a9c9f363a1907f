"""A fleet: who differs is named, who is silent is named, and nobody waits for ever."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from hal import get_backend
from hal.errors import UsageError
from srdd.batch import pack
from srdd.cli import main
from srdd.faults import parse_fault, simulate
from srdd.fleet import collective
from srdd.fleet.announce import judgement_json, judgement_text
from srdd.fleet.answer import Answer, Record, from_text, to_text
from srdd.fleet.meeting import Meeting
from srdd.fleet.member import Member, answer, require_member
from srdd.fleet.probe import probe
from srdd.fleet.run import run_fleet
from srdd.fleet.vote import judge
from tests.conftest import FAMILIES, random_model

BACKEND = get_backend("cpu-reference")
STAGES = ("forward", "plain", "amplified")

# -- the vote ---------------------------------------------------------------------------------------------


def made(rank, changed=(), spread=False, unstable=(), **options):
    """An answer of four layers with two modules each; `changed` are (stage, layer, module) that differ."""
    records = [Record("weights", 0, "layers.0.w", "w")]
    behind = False
    for stage in STAGES:
        for layer in range(4):
            for module in ("mlp", ""):
                here = (stage, layer, module) in changed
                behind |= here and spread and stage == "forward"
                wrong = here or (behind and stage == "forward")
                records.append(
                    Record(stage, layer, f"layers.{layer}.{module}".rstrip("."), f"{rank}!" if wrong else "ok")
                )
    places = [index for index, record in enumerate(records) if (record.stage, record.layer, record.site) in unstable]
    return Answer(rank, "host", "dev", records=tuple(records), unstable=tuple(places), **options)


def fleet(*answers):
    return {entry.rank: entry for entry in answers}


def test_equal_answers_agree():
    found = judge(fleet(made(0), made(1)), 2)
    assert found.verdict == "agree"
    assert found.odd == ()


@pytest.mark.parametrize("world", [3, 4, 7])
@pytest.mark.parametrize("odd", [0, 2])
def test_the_odd_rank_is_named_with_its_first_differing_module(world, odd):
    changed = [(stage, 2, module) for stage in STAGES for module in ("mlp", "")]
    answers = fleet(*(made(rank, changed if rank == odd else (), spread=True) for rank in range(world)))
    found = judge(answers, world)
    assert found.verdict == "odd"
    assert [entry.rank for entry in found.odd] == [odd]
    (place,) = found.odd[0].places  # what the forward pass carried on to layer 3 is no fault of layer 3
    assert (place.layer, place.site, place.stages) == (2, "layers.2.mlp", STAGES)
    assert f"rank {odd} (host, dev) differs at layer 2, layers.2.mlp" in judgement_text(found, answers, "b")


def test_a_fault_that_only_made_up_inputs_reach_is_seen_and_several_layers_are_told_apart():
    changed = [("amplified", 1, ""), ("plain", 3, "mlp")]
    found = judge(fleet(made(0), made(1, changed), made(2)), 3)
    assert [(place.layer, place.site, place.stages) for place in found.odd[0].places] == [
        (1, "layers.1", ("amplified",)),
        (3, "layers.3.mlp", ("plain",)),
    ]


def test_two_odd_ranks_of_five_are_both_named():
    answers = fleet(*(made(rank) for rank in (0, 1, 2)), made(3, [("plain", 0, "")]), made(4, [("plain", 2, "")]))
    assert [(entry.rank, entry.places[0].layer) for entry in judge(answers, 5).odd] == [(3, 0), (4, 2)]


@pytest.mark.parametrize("groups", [[1, 1], [2, 2], [1, 1, 1]])
def test_without_a_majority_nobody_is_accused(groups):
    kinds = [kind for kind, size in enumerate(groups) for _ in range(size)]
    records = [Record("plain", 1, "layers.1", f"value {kind}") for kind in kinds]
    answers = fleet(*(Answer(rank, "host", records=(record,)) for rank, record in enumerate(records)))
    found = judge(answers, len(kinds))
    assert found.verdict == "undecided"
    assert found.odd == ()
    assert [len(group) for group in found.split.groups] == groups
    assert "no majority says which is wrong" in judgement_text(found, answers, "b")


def test_of_two_ranks_the_one_that_does_not_repeat_itself_is_odd():
    place = ("plain", 1, "layers.1")
    found = judge(fleet(made(0), made(1, [("plain", 1, "")], unstable=[place])), 2)
    assert [(entry.rank, entry.unstable) for entry in found.odd] == [(1, True)]
    assert found.split is None


def test_an_operator_that_repeats_itself_nowhere_accuses_nobody():
    place, changed = ("plain", 1, "layers.1"), [("plain", 1, "")]
    found = judge(fleet(*(made(rank, changed, unstable=[place]) for rank in range(3))), 3)
    assert found.verdict == "agree"
    assert found.notes == ("not compared, because most ranks do not repeat themselves there: layers.1",)


def test_other_weights_are_named():
    damaged = made(1)
    damaged = Answer(1, "host", records=(Record("weights", 0, "layers.0.w", "bad"), *damaged.records[1:]))
    found = judge(fleet(made(0), damaged, made(2)), 3)
    assert found.odd[0].weights == ("layers.0.w",)
    assert found.odd[0].places == ()


def test_a_rank_that_called_other_experts_differs():
    fewer = made(1)
    fewer = Answer(1, "host", records=fewer.records[:-1])
    assert [entry.rank for entry in judge(fleet(made(0), fewer, made(2)), 3).odd] == [1]


def test_failed_and_silent_ranks_are_named_and_the_others_compared():
    failed = Answer(1, "host", error="out of memory", exit_code=1)
    answers = fleet(made(0), failed, made(3), made(4))
    found = judge(answers, 5)
    assert found.verdict == "incomplete"
    assert found.failed == ((1, "out of memory"),)
    assert found.silent == (2,)
    text = judgement_text(found, answers, "b")
    assert "rank 1 (host) failed: out of memory" in text
    assert "rank 2 did not answer in time" in text
    assert judge(fleet(*(answers | {4: made(4, [("plain", 0, "")])}).values()), 5).verdict == "odd"


def test_other_hardware_is_noted_because_its_bits_may_differ():
    answers = fleet(*(made(rank, environment={"device_name": "B" if rank == 1 else "A"}) for rank in range(3)))
    assert judge(answers, 3).notes == ("rank 1 has device_name B, most have A: bits may differ for that reason alone",)


def test_what_arrives_changed_is_a_finding():
    answers = fleet(made(0), made(1))
    found = judge(answers, 2, garbled=[(0, 1)])
    assert found.verdict == "odd"
    assert "what rank 1 sends arrives changed at rank 0" in judgement_text(found, answers, "b")


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=6, max_size=6), min_size=2, max_size=7))
def test_a_rank_is_odd_exactly_where_more_than_half_of_all_have_another_value(table):
    answers = fleet(
        *(
            Answer(
                rank,
                "h",
                records=tuple(Record("plain", layer, f"layers.{layer}", value) for layer, value in enumerate(row)),
            )
            for rank, row in enumerate(table)
        )
    )
    found = judge(answers, len(table))
    expected = set()
    for layer in range(6):
        column = [row[layer] for row in table]
        expected |= {(rank, layer) for rank, value in enumerate(column) if 2 * column.count(value) < len(column)}
    assert {(odd.rank, place.layer) for odd in found.odd for place in odd.places} == expected
    tied = any(2 * column.count("a") == len(column) for column in zip(*table, strict=True))
    assert (found.split is not None) == tied


def test_an_answer_travels_as_text():
    whole = made(2, unstable=[("plain", 1, "layers.1")], environment={"torch": "2"}, error="x", exit_code=3)
    assert from_text(to_text(whole)) == whole
    assert json.dumps(judgement_json(judge(fleet(made(0), whole), 2), fleet(made(0), whole)))


# -- the probe --------------------------------------------------------------------------------------------


def digests(model, *faults, trials=1):
    ids = pack(None, (), model)[:1, :16]
    with simulate(model, [parse_fault(fault) for fault in faults]):
        return probe(model, BACKEND, ids, trials)


def differing(first, second):
    """(stage, layer, site) of the records that differ."""
    return [(a.stage, a.layer, a.site) for a, b in zip(first, second, strict=True) if a != b]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_gives_the_same_digests_for_every_module_and_weight(family):
    model = random_model(family, hidden=32, dtype=torch.bfloat16)
    records, unstable = digests(model, trials=2)
    assert unstable == []
    assert records == digests(random_model(family, hidden=32, dtype=torch.bfloat16))[0]
    assert {record.site for record in records if record.stage == "weights"} == {n for n, _ in model.named_parameters()}
    assert {record.layer for record in records if record.stage == "plain"} == {0, 1, 2, 3}


def test_each_layer_has_its_own_input_so_a_fault_does_not_spread():
    model = random_model("llama", hidden=32)
    found = differing(digests(model)[0], digests(model, "bias@1:site=mlp.down_proj,units=1")[0])
    assert {layer for stage, layer, _ in found if stage != "forward"} == {1}
    assert found[0] == ("forward", 1, "model.layers.1.mlp.down_proj")
    assert ("forward", 3, "model.layers.3") in found


def test_a_clamp_that_no_data_reaches_is_seen_under_larger_inputs():
    model = random_model("qwen2", hidden=32)
    clamp = "saturation@2:magnitude=0.1,absolute=true"  # its threshold is that of the model's own input
    found = differing(digests(model)[0], digests(model, clamp)[0])
    assert ("amplified", 2, "model.layers.2") in found


def test_one_flipped_bit_of_one_weight_is_seen_and_named():
    model = random_model("qwen2", hidden=32)
    before = digests(model)[0]
    weight = model.model.layers[2].mlp.up_proj.weight
    weight.data.view(torch.int32)[3, 4] ^= 1
    found = differing(before, digests(model)[0])
    assert found[0] == ("weights", 2, "model.layers.2.mlp.up_proj.weight")
    assert {layer for stage, layer, _ in found if stage not in ("weights", "forward")} == {2}


def test_what_does_not_repeat_itself_is_marked_at_its_source():
    records, unstable = digests(random_model("qwen2", hidden=32), "noise@2:site=mlp", trials=2)
    sources = [records[place] for place in unstable]
    assert sources[0].site == "model.layers.2.mlp"
    assert {record.layer for record in sources if record.stage != "forward"} == {2}


def test_the_probe_leaves_the_model_as_it_was():
    model = random_model("qwen2", hidden=32).train()
    digests(model)
    assert model.training
    assert model.config.use_cache
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# -- ranks that fail or are silent, in threads of one process ---------------------------------------------


def gathering(member, world, silent=(), seconds=2.0):
    """Run every rank but the `silent` ones; returns what each judge announced and what each rank returned."""
    store, announced, returned = dist.HashStore(), [], {}

    def take_part(rank):
        def announce(judgement, _answers):
            announced.append((rank, judgement))
            return 1

        returned[rank] = run_fleet(Meeting(store, rank, 0, world, "test"), member, seconds, announce)

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(world) if rank not in silent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return announced, returned


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr("srdd.fleet.run._GRACE", 1.0)
    monkeypatch.setattr("srdd.fleet.run._COLLECTIVE", 1.0)


MISSING = Member("cpu-reference", Path("/nowhere"))


@pytest.mark.usefixtures("_impatient")
def test_a_silent_rank_is_named_after_the_time_agreed():
    start = time.monotonic()
    ((judging, judgement),), returned = gathering(MISSING, 3, silent=[2])
    assert (judging, judgement.silent) == (0, (2,))
    assert returned == {0: 1, 1: 0}
    assert time.monotonic() - start < 20


@pytest.mark.usefixtures("_impatient")
def test_when_rank_0_is_silent_the_next_one_judges():
    ((judging, judgement),), returned = gathering(MISSING, 3, silent=[0])
    assert judging == 1
    assert judgement.silent == (0,)
    assert returned == {1: 1, 2: 0}


def test_what_goes_wrong_on_a_rank_is_its_answer():
    found = answer(MISSING, 1, 0)
    assert (found.rank, found.exit_code) == (1, 2)
    assert found.error.startswith("model directory /nowhere does not exist")
    assert answer(Member("cpu-reference", trials=1, inject=("bias@99",), inject_rank=4), 4, 0).error.startswith("fault")
    unavailable = answer(Member("none-such"), 0, 0)
    assert "unknown backend 'none-such'" in unavailable.error


@pytest.mark.parametrize(
    ("member", "world", "message"),
    [
        (Member("b"), 1, "nobody to compare with"),
        (Member("b", inject=("bias@1",)), 2, "belong together"),
        (Member("b", inject_rank=1), 2, "belong together"),
        (Member("b", inject=("bias@1",), inject_rank=2), 2, "--inject-rank 2 does not exist: the ranks are 0 to 1"),
        (Member("b", inject=("bios@1",), inject_rank=1), 2, "unknown fault kind 'bios'"),
    ],
)
def test_what_no_rank_could_do_is_refused(member, world, message):
    with pytest.raises(UsageError, match=message):
        require_member(member, world)


# -- the collective ---------------------------------------------------------------------------------------


def test_what_the_collective_carries_is_checked_bit_by_bit(monkeypatch):
    alone, answers = Meeting(dist.HashStore(), 0, 0, 1, "a"), [made(0)]
    assert collective.garbled_senders(alone, BACKEND, answers, 30) == []
    gather = dist.all_gather

    def flip(received, sent):
        gather(received, sent)
        received[0][3] ^= 1 << 40

    monkeypatch.setattr(dist, "all_gather", flip)
    other = Meeting(dist.HashStore(), 0, 0, 1, "b")
    assert collective.garbled_senders(other, BACKEND, answers, 30) == [0]
    assert not dist.is_initialized()


# -- the program ------------------------------------------------------------------------------------------

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PROGRAM = ["-m", "srdd", "fleet", "--backend", "cpu-reference"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_torchrun_names_the_odd_rank_and_its_module(checkpoint, tmp_path):
    path = tmp_path / "fleet.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--master-port", free_port()]
    fault = ["--inject", "dead_zone@2:site=mlp.down_proj,sparsity=0.1", "--inject-rank", "1"]
    done = subprocess.run(
        [*command, *PROGRAM, "--model", checkpoint, *fault, "--json", path],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(
        r"rank 1 \(.*\) differs at layer 2, model.layers.2.mlp.down_proj \(the model's own input", done.stdout
    )
    assert done.stdout.count("VERDICT") == 1
    document = json.loads(path.read_text())
    assert (document["schema"], document["verdict"]) == ("srdd-fleet/1", "odd")
    assert document["odd"][0]["rank"] == 1
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1, 2]
    assert document["notes"] == []  # gloo carried what was sent
    assert document["garbled"] == []


@pytest.fixture
def ranks(checkpoint):
    """Start ranks as a launcher without an agent does; all are gone afterwards."""
    running = []

    def start(world, *started, seconds):
        port = free_port()
        for rank in started:
            job = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, *PROGRAM, "--model", str(checkpoint), "--timeout", str(seconds)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            running.append(subprocess.Popen(command, env=ENVIRONMENT | job | address, **pipes))
        return running

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["crash", "hang"])
def test_a_rank_that_crashes_or_hangs_is_named_and_the_others_end(ranks, blow):
    first, second, third = ranks(3, 0, 1, 2, seconds=45)
    time.sleep(1)
    third.send_signal(blow)
    out, err = first.communicate(timeout=120)
    second.communicate(timeout=30)
    assert err == ""
    assert "rank 2 did not answer in time: crashed, hanging or never started" in out
    assert "VERDICT: rank 2 gave no digests; nothing is known against the others" in out
    assert (first.returncode, second.returncode) == (1, 0)


@pytest.mark.slow
def test_ray_runs_the_same_probe_on_a_real_cluster(checkpoint, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'srdd-hal[ray]'")
    path = tmp_path / "fleet.json"
    cluster = ["--ray", "--ray-address", "local", "--ranks", "3", "--model", checkpoint, "--json", path]
    fault = ["--inject", "bias@1:site=mlp", "--inject-rank", "2"]
    command = [sys.executable, *PROGRAM, *cluster, *fault]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stderr
    assert "differs at layer 1, model.layers.1.mlp" in done.stdout
    assert json.loads(path.read_text())["odd"][0]["rank"] == 2


@pytest.fixture
def refused(capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        code = main(["fleet", "--backend", "cpu-reference", *map(str, arguments)])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, ""), captured.err
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start a fleet by `torchrun"),
        (["--dtype", "int7"], "unknown dtype 'int7'"),
        (["--trials", "0"], "'--trials'"),
        (["--json", "none/fleet.json"], "cannot write none/fleet.json"),
        (["--prompts", "none.txt"], "cannot read prompts file none.txt"),
    ],
)
def test_bad_input_is_named_in_one_line(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x"}, "RANK=x is no whole number"),
        ({"RANK": "2"}, "RANK=2 must be below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "1"}, "a fleet of 1 has nobody to compare with"),
        ({"RANK": "1"}, "rank 1 cannot reach 127.0.0.1:"),
    ],
)
def test_a_job_that_cannot_meet_is_named_in_one_line(refused, monkeypatch, variables, message):
    job = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in (job | variables).items():
        monkeypatch.setenv(name, value)
    assert message in refused("--timeout", 2)
