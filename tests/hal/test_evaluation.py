"""Text is scored and continued one example at a time in effect, whatever the batch and the tokenizer."""

import pytest
import torch

from hal.errors import UsageError
from hal.evaluation import TextLoss, as_prompt, completions, is_right, text_losses
from tests.conftest import byte_level_tokenizer, random_model

TEXTS = ["A short text.", "", "Another one that is longer.", "x"]


@pytest.fixture(scope="module")
def model():
    return random_model("qwen2", layers=2)


@pytest.fixture(params=["no padding token", "end of text", "padding token"])
def tokenizer(request):
    made = byte_level_tokenizer()
    extra = {"end of text": {"eos_token": "<end>"}, "padding token": {"pad_token": "<pad>"}}.get(request.param)
    if extra:
        made.add_special_tokens(extra)
    return made


def test_each_text_has_its_own_loss_whatever_the_batch(model, tokenizer):
    texts = [text for text in TEXTS if text]
    alone = [text_losses(model, tokenizer, [text])[0] for text in texts]
    for size in (1, 2, 3):
        together = text_losses(model, tokenizer, texts, batch_size=size)
        assert [loss.tokens for loss in together] == [len(text) - 1 for text in texts]
        assert [loss.nats for loss in together] == pytest.approx([loss.nats for loss in alone], rel=1e-4)
    with torch.no_grad():
        ids = torch.tensor([list(tokenizer(texts[0])["input_ids"])])
        expected = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    assert alone[0].mean == pytest.approx(float(expected), rel=1e-5)


def test_a_text_that_predicts_nothing_has_no_loss():
    assert TextLoss(0.0, 0).mean == 0.0


def test_completions_do_not_depend_on_the_batch(model, tokenizer):
    prompts = ["One and", "Two", "A third prompt"]
    alone = [completions(model, tokenizer, [prompt], max_new_tokens=4)[0] for prompt in prompts]
    assert completions(model, tokenizer, prompts, batch_size=3, max_new_tokens=4) == alone
    assert any(alone)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_new_tokens": 0}])
def test_sizes_below_one_are_refused(model, tokenizer, options):
    with pytest.raises(UsageError, match="must both be 1 or more"):
        completions(model, tokenizer, ["a"], **options)


def test_a_question_takes_the_chat_template_where_there_is_one(tokenizer):
    assert as_prompt(tokenizer, "2+2?") == "2+2?"
    tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}:"
    assert as_prompt(tokenizer, "2+2?") == "<user>2+2?:"


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("42", " 42 ", True),
        ("Adding gives 42.\n#### 42", "So it is 42", True),
        ("#### 1,000", "1000.0", True),
        ("42", "24", False),
        ("42", "no idea", False),
        ("yes", "yes", True),
    ],
)
def test_an_answer_is_right_word_for_word_or_by_its_last_number(answer, reply, right):
    assert is_right(answer, reply) == right
