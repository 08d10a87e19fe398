"""Small tokenizers as the families have them: how they divide text, their control tokens, their templates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

WORDS = [
    "You are a helpful assistant. I feel sad, and I hear you. That must be hard.",
    "What is bread made of? Flour, water and salt. Hello, how are you?",
    "user system assistant model end start of turn text inst sys im header id eot",
    "<|im_end|> <end_of_turn> [INST] [/INST] <|user|> <|end|> </s> <eos>",
] * 3

CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{{ said }}<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}" + _STRICT + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + _STRICT + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def _wrapped(
    core: Tokenizer, template: str | None, tokens: list[AddedToken], bos: str | None, eos: str
) -> PreTrainedTokenizerBase:
    core.add_tokens(tokens)
    core.add_special_tokens([each for each in tokens if each.special])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=eos)
    if template is not None:
        made.chat_template = template
    return made


def _tokens(*names: str, special: bool = True, **options: bool) -> list[AddedToken]:
    return [AddedToken(name, special=special, normalized=False, **options) for name in names]


def byte_level(
    template: str | None, tokens: list[AddedToken], bos: str | None, eos: str
) -> PreTrainedTokenizerBase:
    """As GPT-2, Qwen and Llama 3 do it."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    return _wrapped(core, template, tokens, bos, eos)


def sentence_pieces(
    template: str | None, tokens: list[AddedToken], bos: str | None, eos: str, how: str
) -> PreTrainedTokenizerBase:
    """As Gemma (no space before the first word), Mistral (one) and Phi-3 (one before every part) do it."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = normalizers.Replace(" ", _METASPACE)
    if how == "first":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif how == "every":
        core.normalizer = normalizers.Sequence([normalizers.Prepend(_METASPACE), space])
    else:
        core.normalizer = space
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    training = Tokenizer(models.BPE(unk_token="<unk>"))
    training.pre_tokenizer = pre_tokenizers.Split(Regex("(?=\N{LOWER ONE EIGHTH BLOCK})"), "isolated")
    training.normalizer = space
    training.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", bos or "<s>", eos, *pieces], show_progress=False
        ),
    )
    core.model = _with_bytes(training.model)
    core.decoder = decoders.Sequence(
        [decoders.Replace(_METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _wrapped(core, template, tokens, bos, eos)


def _with_bytes(trained: models.Model) -> models.Model:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = trained.save(folder)
        pairs = [tuple(line.split(" ")) for line in Path(merges).read_text().splitlines()[1:]]
        vocab = json.loads(Path(vocabulary).read_text())
    return models.BPE(vocab=vocab, merges=pairs, byte_fallback=True, unk_token="<unk>", fuse_unk=True)


def unigram() -> PreTrainedTokenizerBase:
    """As T5's and XLNet's are made; the control tokens are words of the vocabulary with the best score."""
    letters = sorted(set("".join(WORDS)) | {_METASPACE})
    words = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in letters), ("sad", -4.0)]
    core = Tokenizer(models.Unigram(words, unk_id=0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return _wrapped(core, None, _tokens("</s>"), None, "</s>")


Maker = Callable[[], PreTrainedTokenizerBase]
FAMILIES: dict[str, tuple[Maker, str, str]] = {  # with an end of a turn, and what begins one
    "qwen": (
        lambda: byte_level(
            CHATML, _tokens("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>"
        ),
        "<|im_end|>",
        "<|im_start|>system\n",
    ),
    "chatml-not-special": (
        lambda: byte_level(
            CHATML,
            _tokens("<|endoftext|>") + _tokens("<|im_start|>", "<|im_end|>", special=False),
            None,
            "<|endoftext|>",
        ),
        "<|im_end|>",
        "<|im_start|>system\n",
    ),
    "llama3": (
        lambda: byte_level(
            LLAMA3,
            _tokens("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|begin_of_text|>",
            "<|eot_id|>",
        ),
        "<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n",
    ),
    "gemma": (
        lambda: sentence_pieces(
            GEMMA,
            _tokens("<bos>", "<eos>") + _tokens("<start_of_turn>", "<end_of_turn>", "\n\n", special=False),
            "<bos>",
            "<eos>",
            "none",
        ),
        "<end_of_turn>",
        "<start_of_turn>model\n",
    ),
    "mistral": (
        lambda: sentence_pieces(MISTRAL, _tokens("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "first"),
        "</s>",
        "[INST] ",
    ),
    "llama2": (  # its [INST] is text
        lambda: sentence_pieces(MISTRAL, _tokens("<s>", "</s>"), "<s>", "</s>", "every"),
        "</s>",
        "[INST] ",
    ),
    "phi3": (
        lambda: sentence_pieces(
            PHI3,
            _tokens("<s>", "<|endoftext|>")
            + _tokens("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", rstrip=True),
            "<s>",
            "<|endoftext|>",
            "every",
        ),
        "<|end|>",
        "<|system|>\n",
    ),
}
