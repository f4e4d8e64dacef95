"""The tiny models for real: training, its determinism, and the cache under concurrency and kill -9."""

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.models.hub import published
from recipes.rehearsal.small import smaller
from scripts.run.problems import JobError
from scripts.tiny.corpus import passages
from scripts.tiny.model import (
    TINY_MODELS,
    default_cache_root,
    ensure_model,
    ensure_tiny_model,
    model_path,
)
from scripts.tiny.train import TinyModel
from scripts.tiny.untrained import ensure_untrained

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]

# Trains, saying on a line of its own how far it is, so that the test knows when to interfere.
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from scripts.tiny.model import TINY_MODELS, ensure_model
values = dict(steps=int(sys.argv[2]), warmup_steps=1, batch=2, window=32)
model = replace(TINY_MODELS["tiny:qwen3"], **values)
print("folder", ensure_model(model, Path(sys.argv[1]), advance=lambda done, total: print("step", done, flush=True)))
"""


def _short(name: str, steps: int = 3) -> TinyModel:
    return replace(TINY_MODELS[name], steps=steps, warmup_steps=1, batch=2, window=32)


def _child(root: Path, steps: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(steps)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def _visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def test_the_weights_depend_on_nothing_of_the_callers_and_leave_it_alone(tmp_path: Path) -> None:
    import torch

    model = _short("tiny:qwen3")
    first = ensure_model(model, tmp_path / "a")
    threads = torch.get_num_threads()
    torch.manual_seed(987)
    state = torch.random.get_rng_state()
    torch.set_num_threads(threads + 1)
    try:
        with torch.inference_mode():
            second = ensure_model(model, tmp_path / "b")
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert _weights(first) == _weights(second)
    assert _weights(ensure_model(replace(model, seed=2), tmp_path / "a")) != _weights(first)
    child = _child(tmp_path / "c", model.steps)
    out, error = child.communicate(timeout=120)
    assert child.returncode == 0, error
    assert _weights(Path(out.split("folder ")[1].strip())) == _weights(first)


def test_progress_is_told_and_a_cached_model_is_not_trained_again(tmp_path: Path) -> None:
    model = _short("tiny:llama")
    seen: list[tuple[int, int]] = []
    folder = ensure_model(model, tmp_path, advance=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    before = (folder / "tiny.json").stat().st_mtime_ns
    assert ensure_model(model, tmp_path, advance=lambda done, total: seen.append((done, total))) == folder
    assert len(seen) == 3
    assert (folder / "tiny.json").stat().st_mtime_ns == before
    (folder / "config.json").unlink()
    ensure_model(model, tmp_path)
    assert (folder / "config.json").is_file()


def test_two_processes_at_once_train_once(tmp_path: Path) -> None:
    children = [_child(tmp_path, 8) for _ in range(2)]
    results = [child.communicate(timeout=180) for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    assert sorted(out.count("step") for out, _ in results) == [0, 8]
    assert _visible(tmp_path) == [model_path(_short("tiny:qwen3", 8), tmp_path).name]


def test_a_training_killed_in_the_middle_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    steps = 40
    first = _child(tmp_path, steps)
    waiting = None
    try:
        assert first.stdout is not None
        assert "step 1" in first.stdout.readline()
        waiting = _child(tmp_path, steps)
        first.send_signal(signal.SIGKILL)
        assert first.wait(timeout=30) == -signal.SIGKILL
        out, error = waiting.communicate(timeout=180)
    finally:
        for child in (first, waiting):
            if child is not None and child.poll() is None:
                child.kill()
    assert waiting.returncode == 0, error
    assert out.count("step") == steps
    assert _visible(tmp_path) == [model_path(_short("tiny:qwen3", steps), tmp_path).name]
    assert not list(tmp_path.glob(".*partial*"))


def test_a_failing_callback_leaves_no_model_and_no_partial(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_model(_short("tiny:qwen3"), tmp_path, advance=stop)
    assert _visible(tmp_path) == []
    assert not list(tmp_path.glob(".*partial*"))


def test_a_cache_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="XDG_CACHE_HOME") as caught:
        ensure_model(_short("tiny:qwen3"), tmp_path / "file" / "below")
    assert caught.value.name == "tiny_model_cache"


@pytest.fixture(scope="module", params=sorted(TINY_MODELS))
def full(request: pytest.FixtureRequest) -> Path:
    """A fully trained model from the user's own cache; trained now where it is not there."""
    return ensure_tiny_model(request.param, default_cache_root())


def test_a_full_model_knows_its_language(full: Path) -> None:
    facts = json.loads((full / "tiny.json").read_text())
    assert full.name.startswith(facts["model"]["architecture"])
    assert 2_000_000 <= facts["parameters"] <= 10_000_000
    assert facts["held_out_perplexity"] < facts["unigram_perplexity"] / 4
    assert facts["held_out_bits_per_byte"] < facts["unigram_bits_per_byte"] - 1


def test_a_full_model_loads_from_its_folder_fits_every_format_and_writes_text(
    full: Path,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(full, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(full)
    assert network.dtype == torch.bfloat16
    linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 7 * network.config.num_hidden_layers + 1
    assert all(size % 128 == 0 for module in linear for size in module.weight.shape)

    sample = passages("eval")[0] + " \u00e9\u4f60\U0001f642"
    ids = tokenizer(sample)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == sample
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<bos>user: Hi\n\nassistant: "

    # One prompt may end in a table's rules: processors round a training differently.
    texts = []
    for words in ("The following example", "If the", "This function returns", "The class"):
        prompt = tokenizer(words, return_tensors="pt")
        output = network.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(output, skip_special_tokens=True)
        if len(set(output.tolist())) >= 12 and any(word in text for word in (" the ", " is ", " a ", " of ", " to ")):
            texts.append(text)
    assert len(texts) >= 3


def test_the_recorded_perplexity_is_that_of_the_saved_weights(full: Path) -> None:
    """Measured anew, by other code: token by token through the saved files, in a precision that is fast everywhere."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(full, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(full)
    total, count = 0.0, 0
    with torch.no_grad():
        for text in passages("eval"):
            ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            if ids.shape[1] > network.config.max_position_embeddings:
                continue
            chances = network(ids).logits.float().log_softmax(-1)[0, :-1]
            total -= float(chances.gather(1, ids[0, 1:, None]).sum())
            count += ids.shape[1] - 1
    facts = json.loads((full / "tiny.json").read_text())
    assert torch.tensor(total / count).exp().item() == pytest.approx(facts["held_out_perplexity"], rel=0.1)
    assert count > 0.8 * facts["held_out_tokens"]


def test_an_untrained_model_is_made_once_and_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = smaller(published().configs["Qwen/Qwen3-30B-A3B"])
    folder = ensure_untrained(config, tmp_path)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_untrained(config, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    model = AutoModelForCausalLM.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)("a text", return_tensors="pt")
    assert model(**words).logits.isfinite().all()
    with pytest.raises(JobError, match="unsupported_model"):
        ensure_untrained({**config, "model_type": "unheard_of"}, tmp_path)
    assert not [one for one in tmp_path.iterdir() if "unheard_of" in one.name and one.is_dir()]
