"""Fitting a router to recorded outcomes: it learns, is saved, and serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from typer.testing import CliRunner

from r2graph import create_r2_graph, load_router
from r2graph.allocate import AllocateContext
from r2graph.cli import app
from r2graph.decompose import PromptedDecomposer, SingleDecomposer
from r2graph.errors import ConfigError, RouterFileError, RouterMismatchError
from r2graph.feature_allocator import FeatureAllocator, OutcomeModel, cheapest
from r2graph.features import TRAITS, grams, traits
from r2graph.plan import Subtask
from r2graph.pool import ModelPool
from r2graph.replay.fit import Features, Space, fit, left_out, save
from r2graph.replay.table import Replay
from r2graph.trace import trace, write_traces
from r2graph.verify import CallableVerifier
from tests.fakes import Planned, member, pool_of, scripted

DATA = Path(__file__).parent / "data" / "replay"
CHOICES = {"m1": 0.5, "m2": 0.7, "m3": 0.8}
COSTS = {"m1": 1.0, "m2": 2.0, "m3": 4.0}


def recorded(n: int = 120) -> Replay:
    """m1 does sums of small numbers, m2 all sums, m3 all but stories."""
    kinds = ["Add {} and {}.", "Add {}000.5 and {}000.25.", "Tell a story of {} dogs and {} cats."]
    texts = tuple(kinds[at % 3].format(at, at * 7 % 40) for at in range(n))
    scores = np.array([[(1, 1, 1), (0, 1, 1), (0, 0, 0)][at % 3] for at in range(n)], dtype=float)
    costs = np.tile([1.0, 2.0, 4.0], (n, 1))
    return Replay(texts, texts, ("t",) * n, ("m1", "m2", "m3"), scores, costs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fitted") / "mine"
    path.mkdir()
    replay = recorded()
    save(fit(replay), replay, path, name="mine", command="r2graph fit", decomposer="single")
    return path


def pool(*names: str) -> ModelPool:
    specs = [member(name, scripted(*["done"] * 9), str(10.0**at)) for at, name in enumerate(names)]
    return ModelPool(name="p", members=tuple(specs))


def chosen(folder: Path, text: str, quality: float) -> str:
    allocator = load_router(folder).allocator
    assert isinstance(allocator, FeatureAllocator)
    context = AllocateContext(pool("m1", "m2", "m3"), text, quality)
    [choice] = allocator.allocate([Subtask(id="s1", text=text)], context)
    return choice.member


# features


@pytest.mark.parametrize("text", ["", " ", "?", "日本語", "9" * 400, "1/0 {s1} \x00", "a" * 10_000])
def test_any_text_has_finite_features(text: str) -> None:
    assert len(traits(text)) == len(TRAITS)
    assert np.isfinite(traits(text)).all()
    assert all(np.isfinite(value) for value in grams(text).values())


def test_features_are_the_same_in_any_process() -> None:
    text = "How many of the 12.5 dozen eggs are left?"
    code = f"from r2graph.features import *; print([sorted(grams({text!r})), traits({text!r})])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == [sorted(grams(text)), traits(text)]


# the rule


def test_the_cheapest_member_that_is_nearly_the_likeliest_is_chosen() -> None:
    assert [cheapest(CHOICES, COSTS, q) for q in (0.0, 0.62, 0.63, 0.87, 0.88, 1.0)] == [
        *("m1", "m1", "m2", "m2", "m3", "m3")
    ]


def test_of_members_that_cost_the_same_the_likeliest_is_chosen() -> None:
    assert cheapest(CHOICES, dict.fromkeys(CHOICES, 1.0), 0.0) == "m3"


def test_more_quality_never_costs_less() -> None:
    random = np.random.default_rng(0)
    for row in random.random((200, 3)):
        chances = dict(zip(CHOICES, row, strict=True))
        paid = [COSTS[cheapest(chances, COSTS, q)] for q in np.linspace(0, 1, 11)]
        assert paid == sorted(paid)


# fitting


def test_a_fitted_router_sends_each_kind_where_it_is_done_cheapest(folder: Path) -> None:
    assert chosen(folder, "Add 31 and 8.", 0.8) == "m1"
    assert chosen(folder, "Add 31000.5 and 8000.25.", 0.8) == "m2"
    assert chosen(folder, "Add 31000.5 and 8000.25.", 0.0) == "m1"


def test_a_fit_tells_its_errors_on_texts_left_out() -> None:
    fitted = fit(recorded())
    assert (fitted.errors < 0.1 * fitted.base_errors).all()


def test_leaving_out_by_formula_is_leaving_out() -> None:
    replay = recorded(30)
    features = Features.of(replay.texts)
    matrix = Space.of(features, 0).matrix(features).toarray()
    alike = matrix @ matrix.T
    scores = replay.scores.copy()
    scores[:7, 1] = np.nan
    [found] = left_out(alike, scores, [2.0])
    assert np.isnan(found[:7, 1]).all()
    for column, rows in ((0, range(30)), (1, range(7, 30))):
        for row in rows:
            others = [each for each in rows if each != row]
            kernel = alike[np.ix_(others, others)] + 2.0 * np.eye(len(others))
            told = alike[row, others] @ np.linalg.solve(kernel, scores[others, column])
            assert found[row, column] == pytest.approx(np.clip(told, 0, 1), abs=1e-6)


def test_the_saved_model_is_the_regression_that_was_chosen() -> None:
    replay = recorded(60)
    fitted = fit(replay)
    features = Features.of(replay.texts)
    space = Space.of(features, 0)
    kept = Space(space.directions, space.phases, space.gram_scale, fitted.share)
    matrix = kept.matrix(features).toarray()
    kernel = matrix @ matrix.T
    told = kernel @ np.linalg.solve(kernel + fitted.penalty * np.eye(60), replay.scores)
    np.testing.assert_allclose(fitted.model.chances(replay.texts), np.clip(told, 0, 1), atol=1e-3)


def test_a_member_with_too_few_outcomes_is_refused() -> None:
    replay = recorded()
    replay.scores[10:, 1] = np.nan
    with pytest.raises(ConfigError, match="'m2' has outcomes on 10 texts"):
        fit(replay)


def test_what_was_asked_twice_counts_once() -> None:
    replay = recorded()
    twice = replay.rows([*range(120), *range(60)])
    twice.scores[120:] = np.nan  # asked, and never judged
    once = fit(replay)
    again = fit(twice)
    assert len(again.rows) == 120
    np.testing.assert_allclose(
        again.model.chances(replay.texts), once.model.chances(replay.texts), atol=1e-3
    )


def test_alike_texts_have_their_mean_outcome() -> None:
    replay = recorded().rows([0, 1, 0])
    replay.scores[2, 0] = 0
    merged, first = replay.merged()
    assert sorted(first) == [0, 1]
    assert merged.scores[merged.texts.index(replay.texts[0])].tolist() == [0.5, 1, 1]


class Kinds(Embeddings):
    """Knows a story when it sees one."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[2.0, 0.0] if "story" in text else [0.0, 3.0] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_a_users_embeddings_count_beside_the_features(tmp_path: Path) -> None:
    replay = recorded()
    save(fit(replay, embeddings=Kinds()), replay, tmp_path, name="mine", command="-")
    model = OutcomeModel.load(tmp_path / "allocator")
    unseen = ["zzz story zzz", "zzz"]
    story, other = model.chances(unseen, Kinds())
    assert (story < other).all()
    with pytest.raises(ConfigError, match="embeddings"):
        model.chances(unseen)


# as a router


def test_a_fitted_router_runs_in_the_graph(folder: Path) -> None:
    graph = create_r2_graph(pool("m1", "m2", "m3"), router=folder)
    result = graph.invoke("Add 31000.5 and 8000.25.", context={"quality": 0.8})
    assert result["allocation"]["s1"]["member"] == "m2"
    assert result["allocation"]["s1"]["reason"].startswith("chance ")
    assert result["run"]["router"] == "mine"


def test_a_new_member_is_not_started_on_and_one_that_is_gone_is_not_missed(folder: Path) -> None:
    allocator = load_router(folder).allocator
    context = AllocateContext(pool("m0", "m2", "m9"), "q", 0.0)
    [choice] = allocator.allocate([Subtask(id="s1", text="Add 1 and 2.")], context)
    assert choice.member == "m2"
    assert allocator.escalate("m2", context) == "m9"


def test_a_pool_of_strangers_is_refused(folder: Path) -> None:
    with pytest.raises(RouterMismatchError, match="m1, m2, m3"):
        create_r2_graph(pool("a", "b"), router=folder)


def test_the_card_says_who_plans(folder: Path, tmp_path: Path) -> None:
    assert isinstance(load_router(folder).decomposer, SingleDecomposer)
    replay = recorded()
    save(fit(replay), replay, tmp_path, name="mine", command="-")
    assert isinstance(load_router(tmp_path).decomposer, PromptedDecomposer)


def test_a_model_is_read_back_as_it_was_saved(folder: Path) -> None:
    model = OutcomeModel.load(folder / "allocator")
    texts = recorded().texts
    np.testing.assert_allclose(
        model.chances(texts), fit(recorded()).model.chances(texts), atol=1e-5
    )


def test_pickled_numbers_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "features.json").write_bytes((folder / "allocator/features.json").read_bytes())
    arrays = dict(np.load(folder / "allocator" / "features.npz"))
    objects = np.array([print], dtype=object)
    np.savez(tmp_path / "features.npz", **{**arrays, "constant": objects}, allow_pickle=True)
    with pytest.raises(RouterFileError):
        OutcomeModel.load(tmp_path)


@pytest.mark.parametrize("fault", ["no numbers", "cut", "shape", "traits", "no description"])
def test_a_damaged_router_is_a_typed_error(fault: str, folder: Path, tmp_path: Path) -> None:
    about = json.loads((folder / "allocator" / "features.json").read_text())
    numbers = (folder / "allocator" / "features.npz").read_bytes()
    if fault == "shape":
        about["members"] = ["m1"]
    if fault == "traits":
        about["traits"] = ["other"]
    if fault != "no description":
        (tmp_path / "features.json").write_text(json.dumps(about))
    if fault != "no numbers":
        (tmp_path / "features.npz").write_bytes(numbers[:900] if fault == "cut" else numbers)
    with pytest.raises(RouterFileError):
        OutcomeModel.load(tmp_path)


def test_loading_a_router_of_features_imports_no_numpy(folder: Path) -> None:
    code = (
        f"import sys; from r2graph import load_router; load_router({str(folder)!r})\n"
        "print([name for name in ('numpy', 'scipy', 'sklearn') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_choosing_needs_numpy_alone(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from r2graph.feature_allocator import OutcomeModel\n"
        f"OutcomeModel.load(Path({str(folder / 'allocator')!r})).chances(['Add 1 and 2.'])\n"
        "print([name for name in ('scipy', 'sklearn') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


# the command


def test_the_command_fits_published_outcomes(tmp_path: Path) -> None:
    options = ["--replay", "routellm-gsm8k", "--data", str(DATA), "--out", str(tmp_path / "gsm")]
    done = CliRunner().invoke(app, ["fit", *options, "--decomposer", "single"])
    assert done.exit_code == 0, done.output
    assert "gpt-4-1106-preview" in done.output
    card = load_router(tmp_path / "gsm").card
    assert card.name == "gsm"
    assert card.members == ("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview")
    assert card.command == "r2graph fit --replay routellm-gsm8k"


def test_the_command_fits_ones_own_traces(tmp_path: Path) -> None:
    runs = []
    for at in range(44):
        graph = create_r2_graph(
            pool_of(scripted("wrong" if at % 2 else "right"), scripted("right")),
            decomposer=Planned("s1: " + ("jump" if at % 2 else "walk") + f" {at}"),
            verifier=CallableVerifier(lambda attempt: attempt.output == "right"),
        )
        runs.append(trace(graph.invoke(f"q{at}")))
    write_traces(tmp_path / "runs.jsonl", runs)
    done = CliRunner().invoke(
        app,
        [
            *("fit", "--traces", str(tmp_path / "runs.jsonl")),
            *("--out", str(tmp_path / "mine"), "--language", "test"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert load_router(tmp_path / "mine").card.language == "test"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--replay", "llmrouter"],
        ["--replay", "llmrouter", "--data", str(DATA), "--traces", "runs.jsonl"],
        ["--replay", "llmrouter", "--data", str(DATA), "--name", "not a name"],
    ],
)
def test_the_command_says_what_it_lacks(options: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["fit", "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 2
    assert done.stderr.startswith("r2graph: ")
    assert not (tmp_path / "out").exists()
