"""Hybrid models: Mamba-2, attention and experts, computed by Megatron with the stand-ins for mamba-ssm."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.args.export import ExportArgs
from scripts.args.quantize import QuantizeArgs
from scripts.checkpoints import look
from scripts.tiny.untrained import ensure_untrained
from tests.bridge.conftest import SMALL, begin_anew, nemo, perplexity, run_of, tensors, work

pytestmark = pytest.mark.integration
#: Two groups of Mamba's heads; every kind of layer, in an order that tells them apart.
SIZES: dict[str, Any] = {
    **{"model_type": "nemotron_h", "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 2},
    **{"ssm_state_size": 16, "n_routed_experts": 8, "moe_intermediate_size": 128, "chunk_size": 128},
    **{"moe_shared_expert_intermediate_size": 128, "num_experts_per_tok": 2, "routed_scaling_factor": 2.5},
    **{"layers_block_type": ["mamba", "moe", "attention", "mamba"], "max_position_embeddings": 2048},
}


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_untrained(SIZES, tmp_path_factory.mktemp("hybrid"))


def test_megatron_says_what_transformers_says(hybrid: Path, parallel: None) -> None:
    """In float32, of more tokens than a chunk of the scan has; where it generates, and where it trains."""
    import torch
    from modelopt.torch.utils.plugins import megatron_prefill
    from transformers import AutoModelForCausalLM

    from scripts.engines.bridge import loaded

    held = loaded.load(QuantizeArgs(hf_model_id=str(hybrid), dtype="float32"))
    ids = torch.randint(0, 1000, (2, 150), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(hybrid, dtype=torch.float32)(ids).logits
        assert megatron_prefill(held.model, ids)[..., :1024].allclose(expected, atol=1e-4)
        seen = torch.ones(1, 1, 150, 150).triu(1).bool()
        trained = held.model(ids, torch.arange(150)[None], seen)
    assert trained[..., :1024].allclose(expected, atol=1e-4)


def test_it_is_quantized_as_its_recipe_says_and_exported(
    hybrid: Path, text: Path, tmp_path: Path, parallel: None
) -> None:
    """FP8 in experts alone: what breaks such models stays bit for bit."""
    import torch

    from scripts.engines.bridge import quantize, transfer

    made, exported = tmp_path / "megatron", tmp_path / "hf"
    asked = {"export_quant_cfg": "mamba_moe_fp8_conservative", "megatron_save_path": str(made)}
    quantize.quantize(work(QuantizeArgs(hf_model_id=str(hybrid), calib_dataset=str(text), **SMALL | asked), tmp_path))
    assert look(made).kind == "checkpoint_megatron"
    begin_anew()
    args = ExportArgs(hf_model_id=str(hybrid), megatron_load_path=str(made), export_dir=str(exported), tp=1)
    transfer.export(work(args, tmp_path))
    before, after = tensors(hybrid), tensors(exported)
    assert before.keys() <= after.keys()
    packed = {name for name in before if after[name].dtype is torch.float8_e4m3fn}
    assert packed == {name for name in before if "experts" in name}
    assert all(after[name].equal(value) for name, value in before.items() if name not in packed)


@pytest.mark.timeout(900)
def test_a_pruned_one_is_as_good_in_transformers(hybrid: Path, text: Path, tmp_path: Path) -> None:
    """By a search, in a process where Transformer Engine's layers are of plain torch."""
    from transformers import AutoTokenizer

    from scripts.engines.hf.samples import choose_samples

    given = [f"args.hf_model_name_or_path={hybrid}", f"args.calib_dataset_name={text}", "executor=local", "--yes"]
    small = ["args.calib_num_samples=6", "args.seq_length=64", "args.pp_size=1", "args.top_k=2", "engine=bridge"]
    search = ["args.prune_target_params=1.5e6", "args.ss_channel_divisor=64", "torchrun.nproc_per_node=1"]
    done = nemo(tmp_path, "run", "prune", *given, *small, *search)
    assert done.returncode == 0, done.stdout + done.stderr
    record = run_of(tmp_path, "prune")
    figures = json.loads((record["folder"] / "report" / "pruning.json").read_text())["evaluation"]
    assert figures["parameters_after"] < 1.5e6 < figures["parameters_before"]
    (folder,) = (one["path"] for one in record["outputs"] if one["type"] == "checkpoint_hf")
    assert "backbone.embeddings.weight" in tensors(Path(folder))
    as_text = QuantizeArgs(
        hf_model_id=str(hybrid), calib_dataset=str(text), calib_size=6, calib_seq_length=64, eval_size=16
    )
    held = choose_samples(as_text, AutoTokenizer.from_pretrained(hybrid)).held_out
    assert perplexity(Path(folder), held) == pytest.approx(figures["perplexity_after"], rel=0.01)
