"""The tiny models' text: splits that cannot leak, the same in every process; names and cache paths."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run.problems import JobError
from scripts.tiny.corpus import corpus_digest, normalized, passages
from scripts.tiny.model import TINY_MODELS, cache_path, default_cache_root, is_cached
from scripts.tiny.train import unigram_perplexity

ROOT = Path(__file__).resolve().parents[4]


def _paragraphs(texts: list[str]) -> list[str]:
    return [normalized(part) for text in texts for part in re.split(r"\n{2,}", text)]


def test_splits_are_large_enough_and_cover_the_corpus() -> None:
    train, held_out = passages("train"), passages("eval")
    share = sum(map(len, held_out)) / sum(map(len, train + held_out))
    assert sum(map(len, train)) > 250_000
    assert 0.07 < share < 0.14
    assert len(passages("calibration")) >= 200


def test_every_passage_is_of_readable_length() -> None:
    assert all(200 <= len(text) <= 2000 for text in passages("train") + passages("eval"))


def test_no_passage_and_no_paragraph_occurs_twice() -> None:
    texts = passages("train") + passages("eval")
    assert len({normalized(text) for text in texts}) == len(texts)
    paragraphs = _paragraphs(texts)
    assert len(set(paragraphs)) == len(paragraphs)


@pytest.mark.parametrize("split", ["train", "calibration"])
def test_held_out_text_is_in_no_other_split(split: str) -> None:
    held_out = set(_paragraphs(passages("eval")))
    assert held_out.isdisjoint(_paragraphs(passages(split)))  # type: ignore[arg-type]


def test_held_out_text_is_not_quoted_by_the_training_text() -> None:
    """Sixty characters in a row, not only whole paragraphs: at most one in twenty positions is shared."""
    width = 60
    train = normalized(" ".join(passages("train")))
    known = {train[at : at + width] for at in range(len(train) - width)}
    held_out = [normalized(text) for text in passages("eval")]
    spans = [text[at : at + width] for text in held_out for at in range(len(text) - width)]
    assert sum(span in known for span in spans) < 0.05 * len(spans)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, calibration, eval"):
        passages("test")  # type: ignore[arg-type]


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_another_process_sees_the_same_corpus_without_torch(hash_seed: str) -> None:
    code = (
        "import sys; from pathlib import Path; from scripts.tiny.corpus import corpus_digest; "
        "from scripts.tiny.model import is_cached, cache_path; root = Path('/nonexistent'); "
        "print(corpus_digest(), is_cached('tiny:qwen3', root), cache_path('tiny:qwen3', root).name, "
        "'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    name = cache_path("tiny:qwen3", Path("/nonexistent")).name
    assert result.stdout.split() == [corpus_digest(), "False", name, "False"]


def test_each_model_has_its_own_folder(tmp_path: Path) -> None:
    folders = {cache_path(name, tmp_path) for name in TINY_MODELS}
    assert len(folders) == len(TINY_MODELS) == 2
    assert all(folder.parent == tmp_path for folder in folders)


def test_a_folder_with_a_file_missing_is_not_cached(tmp_path: Path) -> None:
    folder = cache_path("tiny:llama", tmp_path)
    folder.mkdir()
    names = ("config.json", "model.safetensors", "tokenizer.json", "tiny.json")
    for name in names:
        assert not is_cached("tiny:llama", tmp_path)
        (folder / name).touch()
    assert is_cached("tiny:llama", tmp_path)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(JobError, match="Did you mean tiny:qwen3") as caught:
        cache_path("tiny:qwen", Path("/nonexistent"))
    assert caught.value.name == "unknown_model"
    with pytest.raises(JobError, match="Choices: tiny:llama, tiny:qwen3"):
        is_cached("\x00$(id)", Path("/nonexistent"))


@pytest.mark.parametrize("value", [None, "", "relative/cache"])
def test_the_cache_is_in_the_home_unless_xdg_names_another(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert default_cache_root() == tmp_path / ".cache/modelopt-recipes/tiny"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache_root() == tmp_path / "x/modelopt-recipes/tiny"


def test_unigram_score_by_hand() -> None:
    # Counts after add-one: token 0 was never seen -> 1, token 1 twice -> 3, token 2 once -> 2, of 6.
    score = unigram_perplexity([[0, 1, 1], [0, 2]], [[0, 1, 0]], vocab_size=3, text_bytes=2)
    assert score.perplexity == pytest.approx((6 / 3 * 6 / 1) ** 0.5)
    assert score.bits_per_byte == pytest.approx(3.5849625 / 2)
