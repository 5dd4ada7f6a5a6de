"""Pools: the models to choose from, in order of capability, with their prices.

A pool comes from Python, from a dict or from a YAML file:

    name: mine
    members:                            # cheapest and least capable first
      - name: small
        model: openai:qwen2.5-7b        # PROVIDER:MODEL, or local:DIRECTORY (relative to the file)
        model_kwargs:                   # passed to the chat model
          base_url: ${VLLM_BASE_URL:-http://127.0.0.1:8001/v1}
        serve: {args: --max-model-len 8192}   # for `r2graph up`, where the server is to be started
        price: {input_per_mtok: 0.05, output_per_mtok: 0.05}   # dollars
        tags: [local]
      - name: large
        model: openai:gpt-6.1-sol       # a list price that `genai-prices` knows need not be stated

Keys come from the environment alone. A server of your own (`base_url`) is sent no key unless
`key_env` names the variable that holds one.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Self

import yaml
from langchain_core.language_models import BaseChatModel
from langchain_core.rate_limiters import InMemoryRateLimiter
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from r2graph.errors import (
    AllocationError,
    ConfigError,
    MissingExtraError,
    MissingKeyError,
    PoolFileError,
    UnknownModelError,
    UnknownPriceError,
    first_fault,
)
from r2graph.pricing import Price, lookup_price

N_SLOTS = 9  # what routers are trained on: capability ranks, not model names
TIMEOUT_S = 60
MAX_FILE_BYTES = 2**18

_SHIPPED = Path(__file__).parent / "pools"
_EXTRAS = {"local": "local", "openai": "openai", "huggingface": "openai"}
# Providers whose chat models read one key and take `timeout` and `max_retries`.
KEY_VARIABLES = {
    "anthropic": "ANTHROPIC_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "fireworks": "FIREWORKS_API_KEY",
    "groq": "GROQ_API_KEY",
    "huggingface": "HF_TOKEN",
    "mistralai": "MISTRAL_API_KEY",
    "openai": "OPENAI_API_KEY",
    "together": "TOGETHER_API_KEY",
    "xai": "XAI_API_KEY",
}
_LANGCHAINS_NAME = "HUGGINGFACEHUB_API_TOKEN"  # for HF_TOKEN
# It speaks OpenAI's protocol. LangChain's own class sends HF_TOKEN to whatever URL it is given,
# samples unless told otherwise, and looks the same to a cache whichever model it calls.
_HUGGING_FACE = "https://router.huggingface.co/v1"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
SECRET_SETTING = re.compile(
    r"(api|access)[_-]?key|secret|password|authorization|(^|api_|auth_|access_|hf_)token$", re.I
)
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.I)
_URL_WITH_USER = re.compile(r"\s*[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.I)
_BUILDING = Lock()

Name = Annotated[str, Field(pattern=r"^[\w.:/+-]{1,100}$")]


def _list_price(known: dict[str, Any]) -> Price:
    """The price of a member that states none."""
    model, price = known["model"], None
    if isinstance(model, str):
        provider, _, model_name = model.partition(":")
        base_url = known["model_kwargs"].get("base_url")
        if provider == "huggingface":  # MODEL:HOST; a model without a host goes to any
            model_name, _, host = model_name.partition(":")
            provider = f"huggingface_{host}"
        price = lookup_price(model_name, provider=provider, base_url=base_url)
    if price is None:
        raise UnknownPriceError(known["name"])
    return price


class Serving(BaseModel):
    """What `r2graph up` starts vLLM with for a member, besides its host and port."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: Annotated[str, Field(min_length=1)] | None = None
    """Id on Hugging Face's hub, or a directory if it begins with `.`, `/` or `~`; relative to the
    pool's file. By default the member's model, which else is only what the server calls it.
    """
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Which cards; by default vLLM takes the first. The model is split over several."""
    args: str = ""
    """Further arguments, as in a shell: vLLM takes 0.9 of a card, so members that share one want
    `--gpu-memory-utilization`.
    """

    @field_validator("model")
    @classmethod
    def _locate(cls, model: str | None, info: ValidationInfo) -> str | None:
        if model is None or not model.startswith((".", "/", "~")):
            return model
        return str(((info.context or Path()) / Path(model).expanduser()).resolve())

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: str) -> str:
        words = shlex.split(args := _expanded("args", args))
        for option in (word for word in words if word.startswith("--")):
            _expanded(option.strip("-").partition("=")[0].replace("-", "_"), True)
        return args


class ModelSpec(BaseModel):
    """A member of a pool: a chat model with its price.

    Raises `UnknownPriceError` if the price is neither stated nor known to `genai-prices`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Name
    model: InstanceOf[BaseChatModel] | str
    """`PROVIDER:MODEL` for `init_chat_model`, `local:DIRECTORY`, or a chat model, used as it is.

    `huggingface:` is Hugging Face's router, which speaks OpenAI's protocol.
    """
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the chat model; texts may use `${VARIABLE}` and `${VARIABLE:-default}`."""
    key_env: str | None = None
    """The environment variable that holds the API key, where it is not the provider's usual one."""
    serve: Serving = Serving()
    price: Price = Field(default_factory=_list_price)
    context_length: Annotated[int, Field(gt=0)] | None = None
    requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """At most so many, by all runs of this process together (LangChain's `InMemoryRateLimiter`).

    A call's wait for its turn counts as its time. A chat model that is used as it is has its own.
    """
    tags: frozenset[str] = frozenset()

    _chat: BaseChatModel | None = PrivateAttr(default=None)
    _identity: str | None = PrivateAttr(default=None)

    @field_validator("model")
    @classmethod
    def _locate(cls, model: BaseChatModel | str, info: ValidationInfo) -> BaseChatModel | str:
        if not isinstance(model, str):
            return model
        provider, _, rest = model.partition(":")
        if not provider or not rest:
            raise ValueError("must be PROVIDER:MODEL or local:DIRECTORY")
        if provider == "local":
            return f"local:{(info.context or Path()) / Path(rest).expanduser()}"
        return model

    @field_validator("requests_per_second")
    @classmethod
    def _check_rate(cls, rate: float | None, info: ValidationInfo) -> float | None:
        if rate is not None and isinstance(info.data.get("model"), BaseChatModel):
            raise ValueError("is for models that are built here: give yours a `rate_limiter`")
        return rate

    @field_validator("model_kwargs")
    @classmethod
    def _fill_in(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {key: _expanded(key, value) for key, value in kwargs.items()}

    @property
    def is_local(self) -> bool:
        """Whether calls of this member stay on the user's own machines."""
        return "local" in self.tags or (
            isinstance(self.model, str) and self.model.startswith("local:")
        )

    @property
    def provider(self) -> str | None:
        """`None`: the chat model is used as it is."""
        return self.model.partition(":")[0] if isinstance(self.model, str) else None

    @property
    def base_url(self) -> str | None:
        """The URL of a server that speaks OpenAI's protocol, where it is not the provider's own."""
        if self.provider not in ("openai", "huggingface"):
            return None
        stated = [key for key in ("base_url", "openai_api_base") if key in self.model_kwargs]
        return str(self.model_kwargs[stated[0]]) if stated else None

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; `None`: no key is sent."""
        if self.key_env is not None or self.base_url is not None:
            return self.key_env
        usual = KEY_VARIABLES.get(self.provider or "")
        if usual == "HF_TOKEN" and not os.environ.get(usual) and os.environ.get(_LANGCHAINS_NAME):
            return _LANGCHAINS_NAME
        return usual

    @property
    def chat(self) -> BaseChatModel:
        """The chat model, built on first use; raises `ConfigError`s such as `MissingKeyError`."""
        if self._chat is None:
            with _BUILDING:
                if self._chat is None:
                    self._chat = _build(self)
        return self._chat

    @property
    def identity(self) -> str:
        """Tells the chat model from others, as it was when last identified; see `identify`."""
        return self._identity or self.identify()

    def identify(self) -> str:
        """A hash of what LangChain's caches know the chat model by; a local one counts its files.

        A class of one's own says in `_identifying_params` what makes its instances differ.
        """
        self._identity = sha256(self.chat._get_llm_string().encode()).hexdigest()
        return self._identity

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Without `model_kwargs`, for they may hold what should not be printed."""
        yield "name", self.name
        yield "model", self.model if isinstance(self.model, str) else type(self.model).__name__
        yield "price", self.price


def _expanded(name: str, value: Any) -> Any:
    """A setting with its `${VARIABLE}`s filled in; refuses keys and what would run foreign code."""
    if SECRET_SETTING.search(name):
        raise ValueError(f"holds {name}: keys come from the environment, name theirs in `key_env`")
    if name == "trust_remote_code" and value:
        raise ValueError("sets trust_remote_code: a pool never runs code that comes with a model")
    if isinstance(value, dict):
        return {key: _expanded(str(key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded("", item) for item in value]
    if not isinstance(value, str):
        return value
    filled = _VARIABLE.sub(_variable, value)
    if _URL_WITH_USER.match(filled):  # HTTP libraries log URLs as they are
        raise ValueError(f"holds a user in the URL {name}: keys come from the environment")
    return filled


def _variable(match: re.Match[str]) -> str:
    name, default = match.groups()
    if _SECRET_VARIABLE.search(name):
        raise ValueError(f"uses {name}: a key is never pasted into settings, name it in `key_env`")
    if (value := os.environ.get(name) or default) is None:
        raise ValueError(f"uses {name}, which is not set in the environment")
    return value


def _build(spec: ModelSpec) -> BaseChatModel:
    if isinstance(spec.model, BaseChatModel):
        return spec.model
    provider, _, model = spec.model.partition(":")
    try:
        chat = _chat_model(provider, model, _settings(spec))
    except ConfigError:
        raise
    except ImportError:
        if provider in _EXTRAS:
            raise MissingExtraError(f"pool member {spec.name!r}", _EXTRAS[provider]) from None
        raise ConfigError(
            f"pool member {spec.name!r} needs LangChain's package for {provider}: install it"
        ) from None
    except Exception as error:  # noqa: BLE001 - any provider's; its text may hold settings
        raise ConfigError(
            f"pool member {spec.name!r} could not be built from {spec.model!r} "
            f"({type(error).__name__}): check the provider, the model and model_kwargs"
        ) from None
    if not isinstance(chat, BaseChatModel):
        raise ConfigError(f"pool member {spec.name!r} is no chat model: check model_kwargs")
    return chat


def _chat_model(provider: str, model: str, settings: dict[str, Any]) -> object:
    if provider == "local":
        from r2graph.local import ChatLocal

        return ChatLocal(model=model, **settings)
    from langchain.chat_models import init_chat_model

    by = "openai" if provider == "huggingface" else provider
    return init_chat_model(model, model_provider=by, **settings)


def _settings(spec: ModelSpec) -> dict[str, Any]:
    """What the chat model is built with: `model_kwargs`, our defaults, and the key."""
    settings = dict(spec.model_kwargs)
    if (rate := spec.requests_per_second) is not None:
        settings["rate_limiter"] = InMemoryRateLimiter(
            requests_per_second=rate, check_every_n_seconds=0.01, max_bucket_size=max(1.0, rate)
        )
    if spec.provider in KEY_VARIABLES:
        # One retry loop only, ours: the SDK's would pay for calls that no budget has seen.
        settings = {"max_retries": 0, "timeout": TIMEOUT_S} | settings
    if spec.provider == "huggingface" and spec.base_url is None:
        settings["base_url"] = _HUGGING_FACE
    if spec.base_url is not None or spec.provider == "huggingface":
        settings.setdefault("stream_usage", True)  # else ChatOpenAI reports none for streamed calls
    if (variable := spec.key_variable) is not None:
        if not (key := os.environ.get(variable)):
            raise MissingKeyError(spec.name, variable)
        settings["api_key"] = SecretStr(key)
    elif spec.base_url is not None:
        # ChatOpenAI wants one, and the user's OpenAI key is none of this server's.
        settings["api_key"] = SecretStr("not-needed")
    return settings


class ModelPool(BaseModel):
    """Members in order of capability, which is also that of price; `rank` 1 is the cheapest.

    Members, `decomposer` and `judge` go by name; `decomposer` plans and `judge` checks where the
    graph's defaults prompt a model. `language` says what the members understand: a router serves
    only pools of its own language, and `any` is natural language.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Name
    members: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    language: str = "any"
    decomposer: str | None = None
    judge: str | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = self.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two members are called {twice!r}")
        for role in ("decomposer", "judge"):
            if (name := getattr(self, role)) is not None and name not in names:
                raise ValueError(f"{role} {name!r} is not a member")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: str | int) -> ModelSpec:
        """The member of a name, or at an index; raises `UnknownModelError`, or `IndexError`."""
        return self.members[self.rank(key) - 1 if isinstance(key, str) else key]

    def rank(self, name: str) -> int:
        """The capability rank of a member, 1 to `len(pool)`; raises `UnknownModelError`."""
        if name not in self.names:
            raise UnknownModelError(
                f"pool {self.name!r} has no member {name!r}: it has {', '.join(self.names)}"
            )
        return self.names.index(name) + 1

    def others(self, name: str) -> list[ModelSpec]:
        """Whom to ask where a member cannot be reached: the next ones up, then down."""
        rank = self.rank(name)
        return [*self.members[rank:], *reversed(self.members[: rank - 1])]

    def slot_to_member(self, slot: int, n_slots: int = N_SLOTS) -> ModelSpec:
        """The member that a router's slot stands for.

        Slots 1 … `n_slots` spread evenly over the members and keep their order: the first slot is
        the cheapest member, the last one the strongest. Raises `AllocationError` for other slots.
        """
        if not 1 <= slot <= n_slots:
            raise AllocationError(f"slot {slot} is not one of 1 to {n_slots}")
        gaps = max(1, n_slots - 1)
        return self.members[((slot - 1) * (len(self) - 1) * 2 + gaps) // (2 * gaps)]

    def local_only(self) -> ModelPool:
        """The members that stay on the user's own machines; raises `ConfigError` if none do."""
        local = tuple(member for member in self.members if member.is_local)
        if not local:
            raise ConfigError(f"pool {self.name!r} has no local member: tag those that are `local`")
        return self._of(local)

    def without(self, *names: str) -> ModelPool:
        """The pool less some members."""
        gone = {self.rank(name) for name in names}
        return self._of(tuple(m for rank, m in enumerate(self.members, 1) if rank not in gone))

    def with_member(self, spec: ModelSpec, rank: int) -> ModelPool:
        """The pool with one more member, which takes capability rank `rank`."""
        if not 1 <= rank <= len(self) + 1:
            raise ConfigError(f"rank {rank} is not one of 1 to {len(self) + 1}")
        return self._of((*self.members[: rank - 1], spec, *self.members[rank - 1 :]))

    def _of(self, members: tuple[ModelSpec, ...]) -> ModelPool:
        """This pool of other members; roles of members that are gone fall to the defaults."""
        if not members:
            raise ConfigError(f"pool {self.name!r} would have no members left")
        names = {member.name for member in members}
        fields = dict(self) | {"members": members}
        for role in ("decomposer", "judge"):
            if fields[role] not in names:
                fields[role] = None
        try:
            return ModelPool.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"pool {self.name!r}: {first_fault(error)}") from None


def load_pool(source: str | Path | Mapping[str, Any]) -> ModelPool:
    """A pool that r2graph ships (`lab`, `openai`, `vllm`, `hybrid`, `paper`), a YAML file, a dict.

    Builds no model and reads no key. Raises `PoolFileError` or `UnknownPriceError`.
    """
    if isinstance(source, Mapping):
        return _validated(dict(source), "dict", None)
    path = _SHIPPED / f"{source}.yaml" if source in _shipped() else Path(source).expanduser()
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        raise PoolFileError(
            f"pool {str(source)!r} is neither a file that can be read nor one of "
            f"{', '.join(_shipped())}"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise PoolFileError(f"pool {str(source)!r} has more than {MAX_FILE_BYTES} bytes")
    try:
        data = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise PoolFileError(f"pool {str(source)!r} is not YAML{where}") from None
    return _validated(data, str(source), path.resolve().parent)


def _shipped() -> list[str]:
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def _validated(data: object, source: str, root: Path | None) -> ModelPool:
    try:
        return ModelPool.model_validate(data, context=root)
    except ValidationError as error:
        raise PoolFileError(f"pool {source!r}: {first_fault(error)}") from None
