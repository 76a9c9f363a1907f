"""The tokenizer of the bundled model: byte-level BPE with a few merges, in the form that Qwen2 tokenizers have.

Every byte is a token of its own, so no text is ever unknown. Merges exist only for letters and spaces: they are learnt
from text whose line breaks were removed, so a newline is always one token, alone, wherever it stands (verl's chat
handling needs that), and the pre-tokenizer splits numbers into digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

VOCABULARY: Final = 512
CONTEXT: Final = 2048
END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Qwen2Tokenizer:
    """Learn the merges from the texts and return a tokenizer that transformers, vLLM, verl and TRL load as it is."""
    from tokenizers import pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The empty Qwen2 tokenizer brings the normalizer and pre-tokenizer that loading will put back: learning the
    # merges under exactly these is what makes the loaded tokenizer split text as this one does.
    learner = Qwen2Tokenizer().backend_tokenizer
    learner.train_from_iterator((" ".join(text.split()) for text in texts), trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        unk_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
