"""ChatLocal: what one caller gets never depends on the others that share the batch."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import math
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from r2graph.attempt import Books
from r2graph.calls import ModelCall
from r2graph.door import Door
from r2graph.errors import (
    ConfigError,
    ModelCallError,
    ModelFileError,
    PromptTooLongError,
    QueryError,
)
from r2graph.ledger import Budget, Ledger
from r2graph.limits import Limits, Meter
from r2graph.local import ChatLocal
from r2graph.local.decoding import Batch, draw
from r2graph.local.engine import open_engine, serve
from r2graph.local.generation import Generation, Options, Vocabulary, settled
from tests.fakes import member
from tests.tiny_models import SPECIAL, tiny_model, tiny_tokenizer, write_babbler, write_parrot

ENDLESS = 1_000_000  # a context that no test fills
PATIENCE_S = 60.0  # what has not happened by then never will
PROMPTS = ["go", "walk around right thrice", "?", "( 12 + 7 ) * 5", "run left and look" * 2]


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Answers differently to everyone, and never stops by itself."""
    return str(write_babbler(tmp_path_factory.mktemp("babbler"), context=ENDLESS))


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Says "so éwi": ten tokens, of which two are hidden, two are the é, and one is the end."""
    return str(write_parrot(tmp_path_factory.mktemp("parrot"), "<scratch>so é<user>wi"))


class TestStandard(ChatModelUnitTests):
    """LangChain's own suite for chat models."""

    folder: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _folder(self, parrot: str) -> None:
        type(self).folder = parrot

    @property
    def chat_model_class(self) -> type[ChatLocal]:
        return ChatLocal

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.folder}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # Not max_retries: where no network can fail, obeying it would be a pretence.
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}


# Without an engine: requests of this file's own vocabulary, decoded on the test's thread.

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(
    ends=frozenset(),
    text=lambda ids: str(TOKENIZER.decode(ids, skip_special_tokens=True)),
    name=lambda token: str(TOKENIZER.decode([token])),
)


def request(prompt: str, max_tokens: int = 8, **options: Any) -> Generation:
    given = Options(max_tokens=max_tokens, **options)
    return Generation(TOKENIZER.encode(prompt), max_tokens, given, VOCABULARY)


@torch.inference_mode()
def decode(model: PreTrainedModel, *rows: Generation) -> list[str]:
    batch = Batch(model)
    batch.join(list(rows))
    while batch.rows:
        batch.step()
    return [row.future.result().text for row in rows]


def count_passes(model: PreTrainedModel) -> list[object]:
    passes: list[object] = []
    model.register_forward_pre_hook(lambda *_: passes.append(None))
    return passes


def seeded_model(**shape: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return tiny_model(**shape)


# One answer


def test_hidden_tokens_are_billed_but_not_shown(parrot: str) -> None:
    reply = ChatLocal(model=parrot).invoke("hi")
    assert reply.content == "so éwi"
    assert reply.usage_metadata == {"input_tokens": 5, "output_tokens": 10, "total_tokens": 15}
    assert reply.response_metadata["model_name"] == Path(parrot).name
    assert reply.response_metadata["finish_reason"] == "stop"


def test_an_answer_says_what_cpu_time_it_took(parrot: str) -> None:
    assert ChatLocal(model=parrot).invoke("hi").response_metadata["cpu_s"] > 0


def test_log_probabilities_come_in_the_form_of_openai(babbler: str) -> None:
    model = ChatLocal(model=babbler, max_tokens=4)
    reply = model.invoke("hi", logprobs=True, top_logprobs=3)
    content = reply.response_metadata["logprobs"]["content"]
    assert len(content) == 4
    for entry in content:
        assert entry.keys() == {"token", "logprob", "top_logprobs"}
        first, *rest = entry["top_logprobs"]
        assert first == {"token": entry["token"], "logprob": entry["logprob"]}  # it was greedy
        assert len(rest) == 2
        assert sum(math.exp(top["logprob"]) for top in [first, *rest]) < 1
    assert "logprobs" not in model.invoke("hi").response_metadata


def test_an_answer_is_that_of_transformers_generate(babbler: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(babbler)
    for prompt in PROMPTS:
        inputs = TOKENIZER(f"<bos><user>{prompt}<assistant>", return_tensors="pt")
        expected = model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = expected.sequences[0, -12:].tolist()
        logprobs = torch.stack(expected.logits).log_softmax(-1).amax(-1)[:, 0].tolist()
        reply = ChatLocal(model=babbler).invoke(prompt, max_tokens=12, logprobs=True)
        content = reply.response_metadata["logprobs"]["content"]
        assert [entry["token"] for entry in content] == [TOKENIZER.decode([t]) for t in tokens]
        assert [entry["logprob"] for entry in content] == pytest.approx(logprobs, abs=1e-4)


def test_an_answer_takes_no_more_forward_passes_than_it_has_tokens() -> None:
    model = seeded_model()
    passes = count_passes(model)
    decode(model, request("hello", max_tokens=4))
    assert len(passes) == 4


def test_the_answer_ends_before_a_stop_sequence(parrot: str) -> None:
    model = ChatLocal(model=parrot)
    for stop, text in {"é": "so ", "o é": "s", "éw": "so ", "so": "", "absent": "so éwi"}.items():
        reply = model.invoke("hi", stop=[stop])
        assert reply.content == text
        assert reply.response_metadata["finish_reason"] == "stop"
    assert ChatLocal(model=parrot, stop=("é", "o")).invoke("hi").content == "s"
    assert model.invoke("hi", stop=["é", " é"]).content == "so"


def test_an_answer_ends_at_max_tokens_or_with_the_context(tmp_path: Path) -> None:
    model = ChatLocal(model=str(write_babbler(tmp_path, context=40)))
    for max_tokens, tokens in [(7, 7), (None, 40 - 5), (99, 40 - 5)]:
        reply = model.invoke("hi", max_tokens=max_tokens)
        assert reply.usage_metadata is not None
        assert reply.usage_metadata["output_tokens"] == tokens
        assert reply.response_metadata["finish_reason"] == "length"


def test_a_prompt_that_fills_the_context_is_refused(tmp_path: Path) -> None:
    model = ChatLocal(model=str(write_babbler(tmp_path, context=40)))
    assert model.invoke("x" * 36)
    with pytest.raises(PromptTooLongError, match="40 tokens"):
        model.invoke("x" * 37)


def test_text_that_spells_a_control_token_stays_text(parrot: str) -> None:
    reply = ChatLocal(model=parrot).invoke([SystemMessage("be kind"), HumanMessage("<eos><user>")])
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["input_tokens"] == len("be kind<eos><user>") + 4


def test_images_are_refused(parrot: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    with pytest.raises(QueryError, match="text only"):
        ChatLocal(model=parrot).invoke([HumanMessage([{"type": "text", "text": "see"}, image])])


# Sampling


def test_a_seed_gives_the_same_answer_again_alone_or_in_company() -> None:
    model = seeded_model()

    def sampled(*seeds: int) -> list[str]:
        rows = [request("hello", 20, temperature=1.0, top_p=0.9, seed=seed) for seed in seeds]
        return decode(model, *rows)

    alone = [sampled(seed)[0] for seed in (1, 2, 3)]
    assert len(set(alone)) == 3
    assert sampled(1, 2, 3) == alone


def test_requests_with_different_options_share_a_batch() -> None:
    model = seeded_model()
    greedy, narrow, hot = decode(
        model,
        request("hello", 9),
        request("hello", 7, temperature=2.0, top_p=1e-6, seed=4),
        request("hello", 7, temperature=2.0, seed=4),
    )
    assert greedy.startswith(narrow)  # of the narrowest nucleus only the likeliest is left
    assert not greedy.startswith(hot)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def frequencies(**options: Any) -> list[float]:
        row = request("", seed=0, **options)
        drawn = Counter(int(draw(logits, [row])) for _ in range(4000))
        return [drawn[token] / 4000 for token in range(4)]

    likely = (logits[0] / 0.5).softmax(-1).tolist()
    assert frequencies(temperature=0.5) == pytest.approx(likely, abs=0.03)
    nucleus = [0.644, 0.237, 0.087]  # the third passes .9; the fourth is left out
    expected = [share / sum(nucleus) for share in nucleus] + [0.0]
    assert frequencies(temperature=1.0, top_p=0.9) == pytest.approx(expected, abs=0.03)


# Many answers


def gpt2() -> PreTrainedModel:
    shape: dict[str, Any] = {"vocab_size": 263, "n_embd": 16, "n_layer": 2, "n_head": 2}
    certain: dict[str, Any] = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, **certain, initializer_range=0.5))


def sliding() -> PreTrainedModel:
    shape: dict[str, Any] = {"vocab_size": 263, "hidden_size": 16, "intermediate_size": 32}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return MistralForCausalLM(
        MistralConfig(
            **shape, **heads, num_hidden_layers=2, sliding_window=6, initializer_range=0.5
        )
    )


@pytest.mark.parametrize("make", [tiny_model, gpt2, sliding])
@torch.inference_mode()
def test_an_answer_does_not_depend_on_who_joins_and_leaves(
    make: Callable[[], PreTrainedModel],
) -> None:
    torch.manual_seed(0)
    model = make()

    def requests() -> list[Generation]:
        return [request(prompt, 20 - 4 * i, top_logprobs=2) for i, prompt in enumerate(PROMPTS)]

    alone = requests()
    for row in alone:
        decode(model, row)
    together = requests()
    batch = Batch(model)
    batch.join([together[0]])
    batch.step()
    batch.join([together[4]])  # wider than what is there, and soon gone
    batch.step()
    batch.join(together[1:3])  # narrower, and of two widths
    batch.step()
    batch.join([together[3]])
    while batch.rows:
        assert min(batch.gaps) == 0  # no column without a token of somebody
        batch.step()
    for one, other in zip(alone, together, strict=True):
        expected, got = one.future.result(), other.future.result()
        assert got.text == expected.text
        assert [e["logprob"] for e in got.logprobs] == pytest.approx(
            [e["logprob"] for e in expected.logprobs], abs=1e-4
        )


@pytest.mark.parametrize(("max_batch", "expected"), [(8, 4), (2, 8)])
def test_requests_that_wait_share_their_forward_passes_up_to_max_batch(
    max_batch: int, expected: int
) -> None:
    model = tiny_model()
    passes = count_passes(model)
    waiting: SimpleQueue[Generation | None] = SimpleQueue()
    rows = [request(prompt, 4) for prompt in PROMPTS[:4]]
    for row in rows:
        waiting.put(row)
    rows[-1].future.add_done_callback(lambda _: waiting.put(None))
    serve(model, waiting, max_batch)
    assert all(row.future.done() for row in rows)
    assert len(passes) == expected


def test_threads_and_event_loops_get_the_answers_they_would_get_alone(babbler: str) -> None:
    model = ChatLocal(model=babbler, max_tokens=10)
    prompts = [prompt * (1 + i % 3) for i in range(8) for prompt in PROMPTS]
    alone = [model.invoke(prompt).content for prompt in prompts]

    async def gathered() -> list[Any]:
        return [reply.content for reply in await asyncio.gather(*map(model.ainvoke, prompts))]

    with ThreadPoolExecutor(20) as threads:
        loop = threads.submit(asyncio.run, gathered())
        assert [reply.content for reply in threads.map(model.invoke, prompts)] == alone
        assert loop.result() == alone


def test_a_request_that_breaks_the_batch_raises_and_the_next_one_is_served() -> None:
    model = seeded_model()
    waiting: SimpleQueue[Generation | None] = SimpleQueue()
    broken, sound = request("hello"), request("hello")
    broken.prompt = [len(SPECIAL) + 256]  # the model has no such token
    broken.future.add_done_callback(lambda _: waiting.put(sound))
    sound.future.add_done_callback(lambda _: waiting.put(None))
    waiting.put(broken)
    serve(model, waiting, 8)
    with pytest.raises(IndexError):
        broken.future.result()
    assert sound.future.result().text


# Streams


def test_a_stream_has_a_chunk_for_each_visible_token_and_the_same_end_as_invoke(
    parrot: str,
) -> None:
    model = ChatLocal(model=parrot, logprobs=True)
    chunks = list(model.stream("hi"))
    assert [chunk.content for chunk in chunks if chunk.content] == ["s", "o", " ", "é", "w", "i"]
    whole, reply = sum(chunks[1:], chunks[0]), model.invoke("hi")
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == reply.content
    assert whole.usage_metadata == reply.usage_metadata
    timeless = [m.response_metadata | {"cpu_s": None} for m in (whole, reply)]
    assert timeless[0] == timeless[1]


async def test_an_asynchronous_stream_is_the_same_as_a_synchronous_one(parrot: str) -> None:
    model = ChatLocal(model=parrot)
    chunks = [chunk.content async for chunk in model.astream("hi", stop=["i"])]
    assert chunks == [chunk.content for chunk in model.stream("hi", stop=["i"])]
    assert "".join(map(str, chunks)) == "so éw"


def test_a_stream_holds_back_what_later_tokens_may_take_back() -> None:
    assert settled("wor\ufffd", []) == "wor"
    assert settled("one, two. ST", ["STOP", "T"]) == "one, two. "
    assert settled("one, two. STO", ["STOP"]) == "one, two. "
    assert settled("one, two. STA", ["STOP"]) == "one, two. STA"


# Leaving early, with a single place in the batch: who does not leave it lets nobody else in.


def test_a_reader_who_leaves_a_stream_frees_its_place(babbler: str) -> None:
    model = ChatLocal(model=babbler, max_batch=1)
    stream = model.stream("hi")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.invoke("hi", max_tokens=2, timeout=PATIENCE_S)


async def test_a_cancelled_caller_frees_its_place(babbler: str) -> None:
    model = ChatLocal(model=babbler, max_batch=1)
    stream = model.astream("hi")
    await anext(stream)
    queued = asyncio.create_task(model.ainvoke("hi"))
    await asyncio.sleep(0.05)
    queued.cancel()
    await stream.aclose()  # type: ignore[attr-defined]
    running = asyncio.create_task(model.ainvoke("hi"))
    await asyncio.sleep(0.05)
    running.cancel()
    assert await model.ainvoke("hi", max_tokens=2, timeout=PATIENCE_S)
    for task in (queued, running):
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_call_that_takes_longer_than_its_timeout_raises(babbler: str) -> None:
    model = ChatLocal(model=babbler, max_batch=1, timeout=0.05)
    with pytest.raises(TimeoutError):
        model.invoke("hi")
    with pytest.raises(TimeoutError):
        list(model.stream("hi"))
    assert model.invoke("hi", max_tokens=2, timeout=PATIENCE_S)


def test_a_timeout_counts_the_wait_for_a_place(babbler: str) -> None:
    model = ChatLocal(model=babbler, max_batch=1)
    stream = model.stream("hi")
    next(stream)
    with pytest.raises(TimeoutError):
        model.invoke("hi", timeout=0.05)
    stream.close()  # type: ignore[attr-defined]


# Engines


def test_instances_share_one_engine_until_the_files_change(tmp_path: Path) -> None:
    def opened(max_batch: int = 64) -> object:
        return open_engine(str(tmp_path), "cpu", "auto", max_batch)

    write_babbler(tmp_path, seed=0)
    first = opened()
    assert opened() is first
    assert opened(max_batch=1) is not first
    write_babbler(tmp_path, seed=1)
    assert opened() is not first


def test_an_engine_that_nobody_holds_ends_its_thread(parrot: str) -> None:
    before = set(threading.enumerate())
    model = ChatLocal(model=parrot, max_batch=3)
    model.invoke("hi")
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    del model
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_used_model_can_be_copied_and_pickled(parrot: str) -> None:
    model = ChatLocal(model=parrot, max_tokens=4)
    reply = model.invoke("hi").content
    assert copy.deepcopy(model).invoke("hi").content == reply
    assert pickle.loads(pickle.dumps(model)).invoke("hi").content == reply


def test_a_call_may_name_another_directory(parrot: str, babbler: str) -> None:
    reply = ChatLocal(model=babbler, max_tokens=20).invoke("hi", model=parrot)
    assert reply.content == "so éwi"
    assert reply.response_metadata["model_name"] == Path(parrot).name


def test_two_models_do_not_answer_from_each_others_cache(parrot: str, babbler: str) -> None:
    cache = InMemoryCache()
    replies = [
        ChatLocal(model=folder, max_tokens=4, cache=cache).invoke("hi").content
        for folder in (parrot, babbler, parrot)
    ]
    assert replies[0] == replies[2] != replies[1]


def test_text_is_counted_in_the_models_own_tokens(parrot: str) -> None:
    assert ChatLocal(model=parrot).get_num_tokens("é!") == 3


# Behind the door: calls with a time limit, on the bill.


class SlowToLoad(ChatLocal):
    """A model whose weights take their time."""

    load_s: float

    def _engine(self, model: str) -> Any:
        if model not in self._engines:
            time.sleep(self.load_s)
        return super()._engine(model)


def asking(chat: ChatLocal) -> ModelCall:
    return ModelCall("executor", member("m1", chat, "1000000"), [HumanMessage("hi")])


def hurried(call_timeout_s: float, books: Books | None = None) -> Door:
    return Door(Meter(Limits(call_timeout_s=call_timeout_s, max_output_tokens=10_000)), books=books)


def test_loading_takes_no_time_of_the_first_call(parrot: str) -> None:
    ChatLocal(model=parrot).invoke("hi")  # whatever else is slow at first
    reply = hurried(1.0).call(asking(SlowToLoad(model=parrot, load_s=1.5)))
    assert reply.text == "so éwi"
    assert reply.seconds < 1.0


async def test_loading_takes_no_time_of_the_first_call_and_none_of_the_event_loop(
    parrot: str,
) -> None:
    await ChatLocal(model=parrot).ainvoke("hi")
    call = asyncio.create_task(hurried(1.0).acall(asking(SlowToLoad(model=parrot, load_s=1.5))))
    beats = 0
    while not call.done():
        await asyncio.sleep(0.1)
        beats += 1
    assert (await call).text == "so éwi"
    assert call.result().seconds < 1.0
    assert beats >= 5


def test_a_directory_that_does_not_read_is_a_fault_of_the_set_up_behind_the_door_too() -> None:
    through = hurried(1.0)
    with pytest.raises(ModelFileError):
        through.call(asking(ChatLocal(model="no/such/directory")))
    assert (through.meter.spent, through.bill) == (0, [])


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield Books(ledger, "run 1", budget=Budget(usd=Decimal(100_000)))


def assert_free(through: Door, books: Books) -> None:
    """The call is on the bill and in the ledger, and nothing was spent or is held for it."""
    (entry,), (line,) = through.bill, books.ledger.lines()
    assert (entry["ok"], entry["input_tokens"], entry["output_tokens"]) == (False, 0, 0)
    assert entry["cost_usd"] == "0"
    assert "estimated" not in entry
    assert (through.meter.calls, through.meter.spent, through.meter._held) == (1, 0, {})
    assert (line.state, line.usd) == ("failed", 0)
    assert books.budget
    assert books.ledger.left(books.budget) == books.budget.usd


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_call_that_times_out_here_is_billed_by_nobody(
    babbler: str, books: Books, asynchronous: bool
) -> None:
    through, call = hurried(0.05, books), asking(ChatLocal(model=babbler, timeout=1.0))
    with pytest.raises(ModelCallError) as caught:
        await through.acall(call) if asynchronous else through.call(call)
    assert caught.value.kind == "timeout"
    assert_free(through, books)


async def test_a_call_that_is_cancelled_here_is_billed_by_nobody(
    babbler: str, books: Books
) -> None:
    through = hurried(PATIENCE_S, books)
    call = asyncio.create_task(through.acall(asking(ChatLocal(model=babbler))))
    await asyncio.sleep(0.3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert_free(through, books)


# Bad input


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def ask_for_own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('code from a model directory was run')")


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def add_a_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "chat_template.jinja").unlink(),
        break_config,
        ask_for_own_code,
        pickle_weights,
        add_a_layer,
    ],
)
def test_a_directory_that_does_not_read_is_a_typed_error(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(write_babbler(tmp_path))
    with pytest.raises(ModelFileError, match=str(tmp_path)):
        ChatLocal(model=str(tmp_path)).invoke("hi")


def test_a_directory_that_is_not_there_is_a_typed_error() -> None:
    with pytest.raises(ModelFileError, match="no/such/directory"):
        ChatLocal(model="no/such/directory").invoke("hi")


@pytest.mark.parametrize(
    "option",
    [{"temprature": 1.0}, {"max_tokens": 0}, {"top_p": 2}, {"temperature": -1}, {"stop": [""]}],
)
def test_an_option_that_makes_no_sense_is_an_error(parrot: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        ChatLocal(model=parrot, **option)
    with pytest.raises(ConfigError, match=next(iter(option))):
        ChatLocal(model=parrot).invoke("hi", **option)


def test_without_torch_the_error_names_the_extra(parrot: str) -> None:
    code = f"""
import sys
from r2graph.local import ChatLocal
assert not {{"torch", "transformers"}} & set(sys.modules)
sys.modules["torch"] = None
try:
    ChatLocal(model={parrot!r}).invoke("hi")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError")
    assert "pip install 'r2graph[local]'" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_a_typed_error(parrot: str) -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        ChatLocal(model=parrot, device="cuda").invoke("hi")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_answer(babbler: str) -> None:
    options: dict[str, Any] = {"model": babbler, "max_tokens": 20}
    on_cpu, on_gpu = (ChatLocal(device=device, **options) for device in ("cpu", "cuda"))
    for prompt in PROMPTS:
        assert on_gpu.invoke(prompt).content == on_cpu.invoke(prompt).content
