"""The training code: packed rows and the windowed attention give the numbers that transformers gives."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from tools.tiny import train as training
from tools.tiny.corpus import documents

pytestmark = pytest.mark.slow

RECIPE = training.Recipe(
    vocab_size=400,
    hidden=32,
    intermediate=64,
    layers=4,
    heads=2,
    wide_layers=2,
    tokenizer_documents=300,
    stages=(training.Stage(steps=3, tokens=1024, rate=1.0, warmup=1, plateau=2, final=0.0),),
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ("".join(text for text, _ in training.pieces(d)) for d in itertools.islice(documents(1), 300))
    return training.train_tokenizer(texts, RECIPE.vocab_size)


def test_packed_loss_equals_document_by_document(tokenizer) -> None:
    torch.manual_seed(0)
    AttentionInterface.register("packed", training.packed_attention)
    model = training.build_model(RECIPE, tokenizer)
    batch = next(training.batches(RECIPE, 1024, tokenizer, seed=5))
    model.config._attn_implementation = "sdpa"
    total, count = 0.0, 0
    for row in range(len(batch.tokens)):
        for number in range(1, int(batch.document[row].max()) + 1):
            own = batch.document[row] == number
            ids, labels = batch.tokens[row][own], batch.labels[row][own]
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0, :-1]
            learned = labels[1:] != training.IGNORED
            total += float(
                torch.nn.functional.cross_entropy(logits[learned], labels[1:][learned], reduction="sum")
            )
            count += int(learned.sum())
    model.config._attn_implementation = "packed"
    with torch.no_grad():
        packed = float(training.loss_of(model, model.model, batch, RECIPE.window))
    assert packed == pytest.approx(total / count, abs=1e-4)


def test_a_reply_is_learned_and_a_prompt_is_not(tokenizer) -> None:
    document = next(d for d in documents(2) if d.system and len(d.turns) == 1)
    ids, labels = training.encode(document, tokenizer)
    learned = tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label != training.IGNORED])
    assert learned == document.turns[0].reply + "<|im_end|>"


def test_trains_saves_and_loads(tmp_path: Path) -> None:
    training.train(RECIPE, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_rate_rises_stays_and_falls() -> None:
    stage = training.Stage(steps=100, tokens=1, rate=0.5, warmup=10, plateau=50, final=0.2)
    rates = [stage.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[10:51] == [0.5] * 41
    assert 0.1 <= rates[-1] < 0.12
    assert rates[50:] == sorted(rates[50:], reverse=True)
