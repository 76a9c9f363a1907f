"""Students are loaded, or cut from a teacher."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from distill.students import load_models, shallower
from hal.bundled import model_dir
from hal.errors import UsageError
from hal.registry import get_backend
from tests.conftest import byte_level_tokenizer, random_model

HOST = get_backend("cpu-reference")


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "mixtral", "gemma2", "gpt_neox"])
def test_a_cut_student_has_every_second_layer_and_all_around_them(family):
    teacher = random_model(family, layers=4)
    student = shallower(teacher)
    assert sum(1 for _ in student.parameters()) < sum(1 for _ in teacher.parameters())
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        made = teacher(ids, output_hidden_states=True).hidden_states
        found = student(ids, output_hidden_states=True).hidden_states
    assert len(found) == 3
    assert len(made) == 5
    assert torch.equal(found[0], made[0])


def test_its_layers_are_the_teachers_at_the_same_depth():
    teacher = random_model("qwen2", layers=6)
    student = shallower(teacher, 3)
    pairs = zip(student.model.layers, [teacher.model.layers[at] for at in (1, 3, 5)], strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "mixtral"])
def test_in_bfloat16_every_tensor_is_the_teachers_rotary_frequencies_too(family, tmp_path):
    random_model(family, layers=4).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    models = load_models(HOST, [tmp_path], None, 1, "bfloat16")
    theirs = {**dict(models.teachers[0].named_parameters()), **dict(models.teachers[0].named_buffers())}
    ours = {**dict(models.student.named_parameters()), **dict(models.student.named_buffers())}
    assert {name for name in ours if "inv_freq" in name} == {name for name in theirs if "inv_freq" in name}
    for name, value in ours.items():
        wanted = theirs[name.replace(".0.", ".3.", 1)]
        assert value.dtype == wanted.dtype, name
        assert torch.equal(value, wanted), name
        assert value.data_ptr() != wanted.data_ptr(), name


def test_a_cut_student_ends_its_replies_as_its_teacher_does():
    teacher = random_model("qwen2", layers=4)
    teacher.generation_config.eos_token_id = [5, 7]
    student = shallower(teacher)
    assert student.generation_config.eos_token_id == [5, 7]
    assert student.generation_config is not teacher.generation_config


def test_a_mixture_whose_layers_differ_by_position_is_not_cut():
    config = tf.Qwen2MoeConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0],
    )  # fmt: skip
    with pytest.raises(UsageError, match="layers of Qwen2MoeForCausalLM differ by position: give --student"):
        shallower(tf.Qwen2MoeForCausalLM(config).eval())


@pytest.mark.parametrize("layers", [0, 4, 9])
def test_a_cut_leaves_some_layers_in_and_some_out(layers):
    with pytest.raises(UsageError, match="the teacher has 4, choose 1 to 3"):
        shallower(random_model("qwen2", layers=4), layers)


def test_teachers_are_frozen_and_the_student_is_not():
    models = load_models(HOST, [model_dir()], None, 3, "float32")
    assert not any(entry.requires_grad for entry in models.teachers[0].parameters())
    assert all(entry.requires_grad for entry in models.student.parameters())
    assert models.student.training
    assert models.names == ("qwen2-arithmetic-12l cut", "qwen2-arithmetic-12l")


def test_a_student_of_its_own_directory_that_is_also_its_teachers():
    models = load_models(HOST, [model_dir()], model_dir(), None, "float32")
    assert models.student is not models.teachers[0]
    assert models.names == ("qwen2-arithmetic-12l", "qwen2-arithmetic-12l")
    with pytest.raises(UsageError, match="--student brings one"):
        load_models(HOST, [model_dir()], model_dir(), 3, "float32")


def test_other_tokenizers_are_refused(tmp_path):
    random_model("qwen2", layers=2).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="has no tokenizer"):
        load_models(HOST, [model_dir()], tmp_path, None, "float32")
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="different tokenizers"):
        load_models(HOST, [model_dir()], tmp_path, None, "float32")


def test_a_model_that_predicts_no_next_token_is_refused(tmp_path):
    random_model("bert", layers=2).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="holds a BertModel: distillation needs models that predict the next token"):
        load_models(HOST, [tmp_path], None, None, "float32")
