"""Random small models and a byte-level tokenizer for the tests and benchmarks of the hf engine."""

import json
from pathlib import Path
from typing import Any

from scripts.args.quantize import QuantizeArgs
from scripts.run.record import Record

VOCAB = 512
#: The formats whose layouts the others vary: where each one costs a model.
LAYOUTS = ("fp8", "nvfp4", "int8_sq", "fp8_blockwise", "int4_awq", "w4a8_awq")
FAMILIES = ("qwen3", "llama", "qwen3_moe", "mixtral")


def tokenizer() -> Any:
    """A byte-level tokenizer without merges: ids 0 to 3 special, 4 to 259 the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build(family: str = "qwen3", *, dtype: str = "bfloat16", seed: int = 0, loud: float = 6.0, **overrides: Any) -> Any:
    """A random causal language model in eval mode; every linear dimension is a multiple of 128.

    One input channel in 32 is made `loud` times as large: without outliers SmoothQuant has nothing to do.
    """
    import torch
    import transformers

    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "tie_word_embeddings": False,
    }
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "num_local_experts": 4}
    classes = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, ()),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, ()),
        "qwen3_moe": (
            transformers.Qwen3MoeConfig,
            transformers.Qwen3MoeForCausalLM,
            ("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
        ),
        "mixtral": (
            transformers.MixtralConfig,
            transformers.MixtralForCausalLM,
            ("num_local_experts", "num_experts_per_tok"),
        ),
    }
    config_class, model_class, extra = classes[family]
    values.update({key: moe[key] for key in extra})
    # A loaded model knows its architecture; ModelOpt's exporter asks for it.
    values["architectures"] = [model_class.__name__]
    values.update(overrides)
    torch.manual_seed(seed)
    # Not `.to(dtype)`: that would round the rotary frequencies too, which a loaded model keeps in float32.
    model = model_class._from_config(config_class(**values), dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("layernorm.weight"):
                weight[::32] *= loud
    model.generation_config.pad_token_id = 3
    return model


def build_58m(**overrides: Any) -> Any:
    """A Qwen3 of about 58 million parameters, a quarter of them in lm_head, for the benchmarks.

    Without loud channels: in a random model eight layers deep they amplify bfloat16 rounding, which already differs
    between products of other shapes, to several steps.
    """
    values: dict[str, Any] = {
        "loud": 1.0,
        "vocab_size": 32768,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    return build("qwen3", **{**values, **overrides})


def save(model: Any, folder: Path) -> Path:
    """The model and the tokenizer in `folder`, as a user would have them."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def token_samples(count: int, shortest: int, longest: int, *, vocab: int = VOCAB, seed: int = 7) -> list[list[int]]:
    """`count` token lists with lengths between `shortest` and `longest`, both included; never a special token."""
    import random

    draw = random.Random(seed)
    return [[draw.randrange(4, vocab) for _ in range(draw.randint(shortest, longest))] for _ in range(count)]


#: Of a report.
SHOWN = ("calibration", "evaluation", "layers", "generations", "size")


def model_folder(folder: Path, family: str = "qwen3") -> Path:
    """A random model with its tokenizer, and a little text."""
    build(family, num_hidden_layers=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    rows = [{"text": f"Sentence number {number} says {'very ' * number}little."} for number in range(12)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(model: Path, out: Path, **values: Any) -> QuantizeArgs:
    """To quantize such a folder quickly."""
    given: Any = {"modelopt_save_path": str(out / "mto"), "export_dir": str(out / "hf")}
    given |= {"calib_size": 8, "eval_size": 2, "calib_seq_length": 32, "prompts": "", "device": "cpu", **values}
    return QuantizeArgs(hf_model_id=str(model), calib_dataset=str(model / "text.jsonl"), **given)


def attempt(record: Record, args: QuantizeArgs) -> dict[str, Any]:
    """Quantize with the hf engine; the digests of the checkpoints, and what its report shows."""
    from scripts.engines.hf.engine import quantize_checkpoint

    with record.running():
        quantize_checkpoint(args, record)
    report = json.loads((record.dir / "report" / "report.json").read_text())
    return {
        "digests": [each["digest"] for each in record.values["outputs"][:-1]],
        **{key: report[key] for key in SHOWN},
    }
