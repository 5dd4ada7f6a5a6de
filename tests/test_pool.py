"""Pools: read strictly, priced honestly, built lazily, and of any size."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from pydantic import SecretStr, ValidationError

from r2graph.errors import (
    AllocationError,
    ConfigError,
    MissingExtraError,
    MissingKeyError,
    PoolFileError,
    UnknownModelError,
    UnknownPriceError,
)
from r2graph.pool import ModelPool, ModelSpec, load_pool
from r2graph.pricing import Price

SHIPPED = ["hybrid", "lab", "openai", "paper", "vllm"]
PRICE = {"input_per_mtok": 1, "output_per_mtok": 2}
ROOT = Path(__file__).parent.parent
URL = "http://127.0.0.1:8000/v1"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without keys and addresses of the machine that the tests run on."""
    for name in [*os.environ]:
        if name.endswith(("_API_KEY", "_TOKEN")) or name.startswith(("OPENAI_", "VLLM_")):
            monkeypatch.delenv(name)


def member(name: str = "m1", **more: Any) -> dict[str, Any]:
    return {"name": name, "model": "openai:some-model", "price": PRICE} | more


def spec(name: str, *tags: str) -> ModelSpec:
    price = Price.model_validate(PRICE)
    chat = FakeListChatModel(responses=["yes"])
    return ModelSpec(name=name, model=chat, price=price, tags=frozenset(tags))


def pool_of(size: int) -> ModelPool:
    return ModelPool(name="p", members=tuple(spec(f"m{n}") for n in range(1, size + 1)))


def openai_chat(**more: Any) -> ChatOpenAI:
    chat = load_pool({"name": "p", "members": [member(**more)]})[0].chat
    assert isinstance(chat, ChatOpenAI)
    return chat


# What is shipped


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pool_loads_without_a_key(name: str) -> None:
    pool = load_pool(name)
    assert pool.name == name
    assert all(member.price.output_per_mtok > 0 for member in pool.members)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_members_of_a_shipped_pool_rise_in_price(name: str) -> None:
    prices = [member.price.output_per_mtok for member in load_pool(name).members]
    assert prices == sorted(prices)


def test_the_openai_pool_states_no_price_that_is_known() -> None:
    assert "price" not in (ROOT / "r2graph/pools/openai.yaml").read_text().replace("prices", "")
    assert load_pool("openai")["gpt-6-luna"].price.input_per_mtok == Decimal("0.1")


def test_the_paper_and_the_lab_have_nine_members() -> None:
    assert len(load_pool("paper")) == len(load_pool("lab")) == 9


def test_the_lab_is_local_and_its_members_lie_beside_the_package() -> None:
    lab = load_pool("lab")
    assert lab.language == "lab"
    assert lab.local_only().names == lab.names
    assert isinstance(lab[0].model, str)
    where = Path(lab[0].model.removeprefix("local:")).resolve()
    assert where == (ROOT / "r2graph/lab/artefacts/m1").resolve()


def test_the_hybrid_pool_starts_on_the_device_and_ends_in_the_cloud() -> None:
    local = [member.is_local for member in load_pool("hybrid").members]
    assert local == sorted(local, reverse=True)
    assert local[0]
    assert not local[-1]


def test_the_vllm_pool_follows_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [member.base_url for member in load_pool("vllm").members]
    assert urls == [f"http://127.0.0.1:{port}/v1" for port in (8001, 8002, 8003)]
    monkeypatch.setenv("VLLM_BASE_URL", "http://gpu-box:9000/v1")
    assert {member.base_url for member in load_pool("vllm").members} == {"http://gpu-box:9000/v1"}


# Reading


def test_a_pool_can_be_read_from_a_file_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    data = {"name": "mine", "members": [member(model="local:models/tiny")]}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    assert load_pool(file)[0].model == f"local:{tmp_path / 'models' / 'tiny'}"
    assert load_pool(str(file)) == load_pool(file)


def test_the_example_of_the_docstring_loads(tmp_path: Path) -> None:
    import r2graph.pool

    assert r2graph.pool.__doc__ is not None
    example = r2graph.pool.__doc__.split("file:\n")[1].split("\nKeys")[0]
    file = tmp_path / "example.yaml"
    file.write_text(example)
    assert load_pool(file).names == ("small", "large")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pirce": 1}, r"members\.0\.pirce is an unknown key"),
        ({"model": "gpt-4o"}, "PROVIDER:MODEL"),
        ({"model": 3}, r"members\.0\.model: "),
        ({"name": "two words"}, r"members\.0\.name"),
        ({"price": {"input_per_mtok": 1}}, r"price\.output_per_mtok"),
        ({"price": PRICE | {"input_per_mtok": -1}}, r"price\.input_per_mtok"),
        ({"price": PRICE | {"input_per_mtok": float("nan")}}, r"price\.input_per_mtok"),
        ({"context_length": 0}, "context_length"),
        ({"model_kwargs": {"base_url": "${R2GRAPH_NOT_SET}"}}, "R2GRAPH_NOT_SET"),
        ({"model_kwargs": {"model_kwargs": {"trust_remote_code": True}}}, "trust_remote_code"),
        ({"serve": {"args": "--trust-remote-code"}}, r"serve\.args.*trust_remote_code"),
        ({"serve": {"args": "--api-key sk-1"}}, r"serve\.args.*key_env"),
        ({"serve": {"args": "--hf-token=hf-1"}}, r"serve\.args.*key_env"),
        ({"serve": {"args": "--seed '1"}}, r"serve\.args"),
        ({"serve": {"port": 8001}}, r"serve\.port is an unknown key"),
    ],
)
def test_a_member_that_is_wrong_is_refused_with_its_place(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PoolFileError, match=reason):
        load_pool({"name": "p", "members": [member() | change]})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"name": "p"}, "members"),
        ({"name": "p", "members": []}, "members"),
        ({"name": "p", "members": [member(), member()]}, "two members are called 'm1'"),
        ({"name": "p", "members": [member()], "judge": "m2"}, "judge 'm2' is not a member"),
        ({"name": "p", "members": [member()], "decomposer": "m2"}, "decomposer 'm2'"),
        ({"name": "p", "members": [member()], "routes": {}}, "routes is an unknown key"),
    ],
)
def test_a_pool_that_is_wrong_is_refused(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(PoolFileError, match=reason):
        load_pool(data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- a",
        b"name: [",
        b"\xff\xfe\xff",
        b"a: !!python/object/apply:os.getcwd []",
        b"#" * 2**19,
    ],
    ids=["empty", "list", "broken", "binary", "code", "huge"],
)
def test_a_file_that_is_no_pool_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_bytes(content)
    with pytest.raises(PoolFileError, match=r"pool\.yaml"):
        load_pool(file)


def test_an_unknown_pool_is_refused_with_the_names_of_the_known(tmp_path: Path) -> None:
    for source in ("opnai", tmp_path):
        with pytest.raises(PoolFileError, match="hybrid, lab, openai, paper, vllm"):
            load_pool(source)


# Prices


def test_a_member_may_be_asked_only_so_often() -> None:
    limiter = openai_chat(model_kwargs={"base_url": URL}, requests_per_second=2).rate_limiter
    assert isinstance(limiter, InMemoryRateLimiter)
    assert limiter.requests_per_second == 2
    own = {"name": "m1", "model": FakeListChatModel(responses=[]), "price": PRICE}
    with pytest.raises(PoolFileError, match="rate_limiter"):
        load_pool({"name": "p", "members": [own | {"requests_per_second": 2}]})


def test_a_price_that_nobody_knows_is_refused() -> None:
    unpriced = {"name": "m1", "model": "openai:some-model"}
    with pytest.raises(UnknownPriceError, match="'m1'"):
        load_pool({"name": "p", "members": [unpriced]})
    with pytest.raises(UnknownPriceError):
        ModelSpec(name="m1", model=FakeListChatModel(responses=[]))


def test_a_model_on_a_server_of_ones_own_has_no_list_price() -> None:
    own = {"name": "m1", "model": "openai:gpt-4o", "model_kwargs": {"base_url": URL}}
    with pytest.raises(UnknownPriceError):
        load_pool({"name": "p", "members": [own]})


def test_a_stated_price_goes_before_the_list_price() -> None:
    stated = member(model="openai:gpt-4o")
    assert load_pool({"name": "p", "members": [stated]})[0].price.input_per_mtok == 1


def test_a_model_on_hugging_face_costs_what_the_named_host_asks() -> None:
    model = "huggingface:meta-llama/Llama-3.1-8B-Instruct"
    hosted = {"name": "m1", "model": f"{model}:novita"}
    assert load_pool({"name": "p", "members": [hosted]})[0].price.input_per_mtok == Decimal("0.02")
    with pytest.raises(UnknownPriceError):
        load_pool({"name": "p", "members": [{"name": "m1", "model": model}]})


# Keys


@pytest.mark.parametrize(
    "kwargs",
    [
        {"api_key": "sk-canary"},
        {"openai_api_key": "sk-canary"},
        {"default_headers": {"Authorization": "Bearer sk-canary"}},
        {"default_headers": [{"X-Api-Key": "sk-canary"}]},
        {"huggingfacehub_api_token": "sk-canary"},
        {"base_url": "https://host/${CANARY_API_KEY}"},
    ],
)
def test_a_key_among_the_settings_is_refused_and_not_repeated(
    kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_API_KEY", "sk-canary")
    with pytest.raises(PoolFileError, match="key_env") as caught:
        load_pool({"name": "p", "members": [member(model_kwargs=kwargs)]})
    assert "sk-canary" not in str(caught.value)
    with pytest.raises(ValidationError) as refused:
        ModelSpec.model_validate(member(model_kwargs=kwargs))
    assert "sk-canary" not in str(refused.value)


def test_settings_that_only_sound_like_keys_are_accepted() -> None:
    kwargs = {"max_tokens": 5, "eos_token_id": 0, "pad_token": "x"}
    loaded = load_pool({"name": "p", "members": [member(model_kwargs=kwargs)]})
    assert loaded[0].model_kwargs == kwargs


def test_a_missing_key_is_named_when_the_model_is_first_used() -> None:
    first = load_pool("openai")[0]
    with pytest.raises(MissingKeyError, match="OPENAI_API_KEY"):
        _ = first.chat


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-usual")
    assert openai_chat().openai_api_key == SecretStr("sk-usual")
    monkeypatch.setenv("MY_KEY", "sk-named")
    assert openai_chat(key_env="MY_KEY").openai_api_key == SecretStr("sk-named")


def test_a_server_of_ones_own_needs_no_key_and_is_not_sent_openais(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"model_kwargs": {"base_url": URL}}
    assert openai_chat(**own).openai_api_key == SecretStr("not-needed")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert openai_chat(**own).openai_api_key == SecretStr("not-needed")
    monkeypatch.setenv("MY_KEY", "sk-named")
    assert openai_chat(**own, key_env="MY_KEY").openai_api_key == SecretStr("sk-named")


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGINGFACEHUB_API_TOKEN"])
def test_a_model_on_hugging_face_is_asked_through_its_router_with_its_token(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingKeyError, match="HF_TOKEN"):
        openai_chat(model="huggingface:org/name:novita")
    monkeypatch.setenv(variable, "hf-usual")
    chat = openai_chat(model="huggingface:org/name:novita")
    assert chat.openai_api_base == "https://router.huggingface.co/v1"
    assert chat.model_name == "org/name:novita"
    assert chat.openai_api_key == SecretStr("hf-usual")
    assert (chat.max_retries, chat.request_timeout, chat.stream_usage) == (0, 60, True)


def test_an_endpoint_of_ones_own_is_sent_a_hugging_face_token_only_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-canary")
    own = {"model": "huggingface:org/name", "model_kwargs": {"base_url": URL}}
    assert openai_chat(**own).openai_api_key == SecretStr("not-needed")
    assert openai_chat(**own, key_env="HF_TOKEN").openai_api_key == SecretStr("hf-canary")


def test_printing_a_pool_shows_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    kwargs = {"default_query": {"id": "canary"}}
    pool = load_pool({"name": "p", "members": [member(model_kwargs=kwargs)]})
    _ = pool[0].chat
    assert "canary" not in repr(pool) + str(pool)
    assert "openai:some-model" in repr(pool)


# Building


def test_a_model_is_built_once_even_by_many_threads() -> None:
    own = load_pool({"name": "p", "members": [member(model_kwargs={"base_url": URL})]})[0]
    barrier = Barrier(8)

    def build(_: int) -> int:
        barrier.wait()
        return id(own.chat)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(build, range(8)))) == 1


def test_an_instance_is_used_as_it_is() -> None:
    chat = FakeListChatModel(responses=["yes"])
    assert ModelSpec(name="m", model=chat, price=Price.model_validate(PRICE)).chat is chat


def test_calls_are_bounded_in_time_and_never_retried_by_the_sdk() -> None:
    own = {"base_url": URL}
    assert openai_chat(model_kwargs=own).max_retries == 0
    assert openai_chat(model_kwargs=own).request_timeout == 60
    assert openai_chat(model_kwargs=own | {"timeout": 5}).request_timeout == 5


def test_streams_of_a_server_of_ones_own_report_usage() -> None:
    assert openai_chat(model_kwargs={"base_url": URL}).stream_usage is True


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "no-such-provider:x"}, ConfigError),
        ({"model_kwargs": {"base_url": URL, "temperature": "sk-canary"}}, ConfigError),
        ({"model_kwargs": {"base_url": URL, "configurable_fields": ["model"]}}, ConfigError),
    ],
)
def test_a_model_that_cannot_be_built_is_a_typed_error(
    change: dict[str, Any], error: type[Exception]
) -> None:
    broken = load_pool({"name": "p", "members": [member(**change)]})[0]
    with pytest.raises(error, match="'m1'") as caught:
        _ = broken.chat
    assert "sk-canary" not in str(caught.value)


def test_a_missing_package_is_an_error_that_names_the_extra() -> None:
    code = """
import sys
sys.modules["langchain_openai"] = None  # as if it were not installed
from r2graph.pool import load_pool
load_pool("vllm")[0].chat
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("pip install 'r2graph[openai]'")
    assert MissingExtraError.__name__ in done.stderr


# Ranks and slots


def test_members_are_found_by_name_and_by_index() -> None:
    pool = pool_of(3)
    assert pool["m2"] is pool[1]
    assert pool[-1].name == "m3"
    assert pool.rank("m3") == len(pool) == 3
    with pytest.raises(UnknownModelError, match="m1, m2, m3"):
        _ = pool["m4"]


@given(st.integers(1, 30), st.integers(2, 30))
def test_slots_keep_their_order_and_reach_both_ends(size: int, n_slots: int) -> None:
    pool = pool_of(size)
    ranks = [pool.rank(pool.slot_to_member(s, n_slots).name) for s in range(1, n_slots + 1)]
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (1, size)


@given(st.integers(1, 9))
def test_a_pool_no_larger_than_the_slots_is_reached_whole(size: int) -> None:
    pool = pool_of(size)
    assert {pool.slot_to_member(slot).name for slot in range(1, 10)} == set(pool.names)


def test_nine_slots_are_nine_members() -> None:
    pool = pool_of(9)
    assert [pool.slot_to_member(slot).name for slot in range(1, 10)] == list(pool.names)


@pytest.mark.parametrize("slot", [0, 10, -1])
def test_a_slot_that_does_not_exist_is_refused(slot: int) -> None:
    with pytest.raises(AllocationError, match="1 to 9"):
        pool_of(3).slot_to_member(slot)


# Other pools from a pool


def test_local_only_keeps_what_stays_on_the_device() -> None:
    mixed = ModelPool(name="p", members=(spec("a", "local"), spec("b")), decomposer="a", judge="b")
    assert mixed.local_only().names == ("a",)
    assert mixed.local_only().decomposer == "a"
    assert mixed.local_only().judge is None
    with pytest.raises(ConfigError, match="no local member"):
        pool_of(2).local_only()


def test_members_can_be_taken_out_and_put_in() -> None:
    pool = pool_of(3)
    assert pool.without("m2").names == ("m1", "m3")
    assert pool.without("m2").with_member(spec("new"), rank=2).names == ("m1", "new", "m3")
    assert pool.with_member(spec("new"), rank=4).names == ("m1", "m2", "m3", "new")
    assert pool.names == ("m1", "m2", "m3")


def test_a_change_that_leaves_no_valid_pool_is_refused() -> None:
    pool = pool_of(2)
    with pytest.raises(ConfigError, match="no members left"):
        pool.without("m1", "m2")
    with pytest.raises(UnknownModelError):
        pool.without("m9")
    with pytest.raises(ConfigError, match="two members"):
        pool.with_member(spec("m1"), rank=1)
    with pytest.raises(ConfigError, match="1 to 3"):
        pool.with_member(spec("new"), rank=4)


def test_a_derived_pool_shares_the_models_already_built() -> None:
    pool = pool_of(2)
    assert pool.without("m2")[0] is pool[0]
