"""Arguments of the Megatron-LM family: examples/post_training/modelopt, by model card.

The scripts take Megatron-LM's whole argument list; what describes the model comes from its card in
configs/models/megatron_lm.yaml, the rest is here. `extra_args` reaches everything else.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scripts.args.meaning import Role, ScriptArgs, Work, doc
from scripts.args.prune import MMLU
from scripts.args.quantize import KvCacheQuant
from scripts.args.shared import (
    PROMPTS,
    hub_model,
    megatron_checkpoint,
    quantized_checkpoint,
    remote_code,
    uneven,
    written,
)
from scripts.formats import CONFIG_NAMES, FORMATS, NOT_EXPORTABLE

_EXAMPLES = "Megatron-LM/examples/post_training/modelopt"
#: Tokens of a sample that the scripts calibrate on where nothing is said; of an MMLU question after five examples, at
#: most; and of the first turn of MT-Bench (arXiv:2306.05685), which has so many.
_CALIBRATION_TOKENS, _QUESTION_TOKENS, _PROMPT_TOKENS, _MT_BENCH = 512, 2048, 512, 80


@dataclass(frozen=True, kw_only=True)
class MegatronLmArgs(ScriptArgs):
    """What all of them have in common: the model, its checkpoint, how it is spread over GPUs."""

    BEGINS: ClassVar[tuple[Role, ...]] = ("checkpoint", "weights")
    SPREADS_OPTIMIZER: ClassVar[str] = "--use-distributed-optimizer"
    PADS_VOCABULARY: ClassVar[bool] = True
    REFUSES_LONG: ClassVar[bool] = True

    model_card: str = doc(
        "a card of configs/models/megatron_lm.yaml", "meta-llama/Llama-3.2-1B-Instruct", card=True, role="model"
    )
    tokenizer_model: str | None = doc(
        "its tokenizer: a folder or a hub name; null is the card's name", None, role="tokenizer"
    )
    load: str | None = megatron_checkpoint("the Megatron checkpoint to begin with")
    tokenizer_type: str = doc("how the tokenizer is kept", "HuggingFaceTokenizer")
    seq_length: int | None = doc("tokens per sample; null is the card's", None, role="sequence")
    micro_batch_size: int = doc("samples per GPU and step of accumulation", 1, role="micro_batch")
    bf16: bool = doc("compute in bfloat16", True, role="bf16")
    tp: int = doc("tensor parallel size", 1, flags=("tensor_model_parallel_size",), role="tp")
    pp: int = doc("pipeline parallel size", 1, flags=("pipeline_model_parallel_size",), role="pp")
    ep: int = doc("expert parallel size", 1, flags=("expert_model_parallel_size",), role="ep")
    etp: int = doc("expert tensor parallel size", 1, flags=("expert_tensor_parallel_size",), role="etp")
    cp: int = doc("context parallel size", 1, flags=("context_parallel_size",), role="cp")
    decoder_first_pipeline_num_layers: int | None = uneven("first_stage")
    decoder_last_pipeline_num_layers: int | None = uneven("last_stage")
    trust_remote_code: bool = remote_code()
    finetune: bool = doc("load the weights, not the state of a training", True)
    auto_detect_ckpt_format: bool = doc("tell the checkpoint's format by looking", True)
    export_te_mcore_model: bool = doc("build the model with Transformer Engine's names", True)
    distributed_timeout_minutes: int | None = doc("how long a rank waits for the others", None, least=1)


@dataclass(frozen=True, kw_only=True)
class _SavedArgs(MegatronLmArgs):
    """What those have that begin with a Hugging Face model, or `load`, and leave a checkpoint of another model."""

    pretrained_model_path: str | None = hub_model(None, "instead of `load`: a folder or a hub name", role="weights")
    save: str | None = written("Megatron checkpoint", "checkpoint_megatron")
    save_interval: int = doc(
        "what Megatron-LM wants to be told, with --save; it saves at the end", 100000, role="save_interval"
    )


@dataclass(frozen=True, kw_only=True)
class _CalibratedArgs(_SavedArgs):
    """What those have that pass samples through the model, and try it afterwards."""

    calib_max_sequence_length: int | None = doc(
        "tokens per sample; null is the script's own", None, role="calib_sequence"
    )
    prompts: str = doc("prompts to continue afterwards, separated by |", PROMPTS, role="prompts")
    references: str | None = doc("what the continuations must be, separated by |", None)
    skip_generate: bool = doc("do not continue the prompts", False)

    def work(self) -> dict[str, Any]:
        return {"tokens": self.calib_max_sequence_length or _CALIBRATION_TOKENS}


@dataclass(frozen=True, kw_only=True)
class MlmConvertArgs(_SavedArgs):
    """What `mlm_convert` does: a Hugging Face model as Megatron checkpoint, with draft heads where asked."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/convert_model.py",)
    WORK: ClassVar[Work | None] = "transfer"

    pretrained_model_path: str | None = hub_model(None, role="weights")
    algorithm: Literal["eagle3", "eagle1", "medusa"] | None = doc(
        "add heads for speculative decoding", None, role="draft_heads"
    )
    eagle_config: dict[str, Any] | None = doc("the heads' architecture", None)
    mix_hidden_states: bool = doc("EAGLE: mix the hidden states of steps", False)
    init_model_with_meta_device: bool = doc("build the model without memory first", False)


@dataclass(frozen=True, kw_only=True)
class MlmQuantizeArgs(_CalibratedArgs):
    """What `mlm_quantize` does."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/quantize.py",)
    EXPORTER: ClassVar[str] = "mlm_export"
    WORK: ClassVar[Work | None] = "calibration"

    save: str | None = written("Megatron checkpoint", "checkpoint_megatron", quantized=True)
    export_quant_cfg: str | None = doc(
        f"a format name: {', '.join(FORMATS)}", "fp8", aliases=CONFIG_NAMES, role="format"
    )
    recipe: str | None = doc("a ModelOpt recipe, instead of a format", None, role="format_recipe")
    export_kv_cache_quant: KvCacheQuant = doc("format of the key/value cache", "none", role="kv_format")
    compress: bool = doc("store real low-precision weights", False, role="compress")
    weight_only: bool = doc("quantize weights, leave activations alone", False, role="weight_only")
    disable_qkv_quant: bool = doc("leave attention as it is", False)
    num_first_layers_to_skip_quant: int | None = doc("leave so many first layers as they are", None)
    num_last_layers_to_skip_quant: int | None = doc("leave so many last layers as they are", None)
    calib_size: int | None = doc("calibration samples; null is the script's own", 512, role="samples")
    calib_dataset: str | None = doc(
        "a data set's name or a JSONL file", None, flags=("calib_dataset_path_or_name", "calib_dataset"), role="data"
    )
    calib_batch_size: int | None = doc("samples per forward pass; null is the script's own", None, role="batch")
    calib_use_random_offset: bool = doc("begin somewhere inside each text", False)
    sync_expert_weight_amax: bool = doc("one scale for the weights of all experts", False)
    force_all_expert_routing: bool = doc("send every token through every expert", False, role="every_expert")
    auto_quantize_bits: float | None = doc(
        "search a format for each layer, with so many bits on average", None, above=0, most=16
    )
    auto_quantize_formats: list[str] | None = doc("which formats the search may use", None)
    auto_quantize_method: Literal["gradient", "kl_div"] | None = doc("how the search scores a layer", None)
    sequence_parallel: bool = doc("with tensor parallelism: spread activations too", True, role="sequence_parallel")


@dataclass(frozen=True, kw_only=True)
class MlmExportArgs(MegatronLmArgs):
    """What `mlm_export` does. Only pipeline parallelism: the exporter gathers no tensor-parallel shards."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/export.py",)
    WORK: ClassVar[Work | None] = "transfer"
    DATA_PARALLEL: ClassVar[bool] = False

    load: str | None = quantized_checkpoint(refuses=NOT_EXPORTABLE)
    pretrained_model_name: str | None = doc("whose configuration and tokenizer to write", None, role="reference")
    export_dir: str | None = written("deployable Hugging Face checkpoint", "checkpoint_hf", quantized=True)
    export_extra_modules: bool = doc("export the draft heads only", False)
    export_vllm_fq: bool = doc("for ModelOpt's fake-quantized vLLM instead", False)
    use_cpu_initialization: bool = doc("build the model in the machine's memory", True)


@dataclass(frozen=True, kw_only=True)
class MlmGenerateArgs(MegatronLmArgs):
    """What `mlm_generate` does: answers to MT-Bench questions, with draft tokens where the model has heads for them."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/generate.py",)
    WORK: ClassVar[Work | None] = "generation"

    osl: int = doc("tokens of each answer", 128, role="new_tokens")
    draft_length: int = doc("draft tokens at a time; 0 is plain generation", 0)
    draft_topk: int = doc("branches of a draft", 1, least=1)
    fraction: float = doc("part of the questions", 1.0, flags=("fraction", "percentage"), role="limit", above=0, most=1)
    disable_tqdm: bool = doc("no progress bar", False)

    def work(self) -> dict[str, Any]:
        return {"tokens": _PROMPT_TOKENS, "samples": round(_MT_BENCH * self.fraction)}


@dataclass(frozen=True, kw_only=True)
class MlmMmluArgs(MegatronLmArgs):
    """What `mlm_mmlu` does: the MMLU score of a Megatron checkpoint."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/mmlu.py",)
    WORK: ClassVar[Work | None] = "generation"

    fraction: float = doc("part of the questions", 1.0, flags=("fraction", "percentage"), role="limit", above=0, most=1)
    lower_bound: float | None = doc("fail below this score", None, least=0, most=1)
    mmlu_dataset: str | None = doc("a hub name or folder; null is the script's own", None, role="eval_data")
    few_shots: int | None = doc("examples before each question", None)
    mmlu_batch_size: int | None = doc("questions at a time", None, least=1)
    no_subject_prompt: bool = doc("do not name the subject", False)
    cache_dir: str | None = doc("where the data set is kept", None, path="write")
    disable_tqdm: bool = doc("no progress bar", False)

    def work(self) -> dict[str, Any]:
        samples = round(MMLU * self.fraction)
        return {"tokens": _QUESTION_TOKENS, "batch": self.mmlu_batch_size or 1, "samples": samples, "new_tokens": 1}


@dataclass(frozen=True, kw_only=True)
class MlmPruneArgs(_CalibratedArgs):
    """What `mlm_prune` does (Minitron, arXiv:2407.14679): to a fixed architecture."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/prune.py",)
    WORK: ClassVar[Work | None] = "scoring"

    export_default_te_spec: bool = doc("since core 0.18, instead of export_te_mcore_model", False)
    prune_export_config: dict[str, Any] | None = doc(
        "the architecture, since core 0.18: {hidden_size: 3072, ...}", None, role="pruned_sizes"
    )
    target_hidden_size: int | None = doc("before core 0.18", None, role="pruned_size")
    target_ffn_hidden_size: int | None = doc("before core 0.18", None, role="pruned_size")
    target_num_attention_heads: int | None = doc("before core 0.18", None, role="pruned_size")
    target_num_query_groups: int | None = doc("before core 0.18", None, role="pruned_size")
    target_mamba_num_heads: int | None = doc("before core 0.18", None, role="pruned_size")
    target_mamba_head_dim: int | None = doc("before core 0.18", None, role="pruned_size")
    target_num_moe_experts: int | None = doc("before core 0.18", None, role="pruned_size")
    target_moe_ffn_hidden_size: int | None = doc("before core 0.18", None, role="pruned_size")
    target_moe_shared_expert_intermediate_size: int | None = doc("before core 0.18", None, role="pruned_size")
    target_num_layers: int | None = doc("before core 0.18", None, role="pruned_size")
    layers_to_drop: list[int] | None = doc("before core 0.18: these layers, counted from 1", None)
    prune_intermediate_ckpt: str | None = doc(
        "where importance scores are kept, to go on with",
        None,
        flags=("prune_intermediate_ckpt", "pruning_scores_path"),
        path="write",
    )
    calib_size: int = doc("samples that importance is estimated on", 1024, role="samples")
    calib_dataset: str | None = doc("a data set's name or a JSONL file", None, role="data")


@dataclass(frozen=True, kw_only=True)
class MlmFinetuneArgs(MegatronLmArgs):
    """What `mlm_finetune` and `mlm_distill` do: SFT, QAT of a quantized checkpoint, KD and QAD with a teacher."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/finetune.py",)
    WORK: ClassVar[Work | None] = "training"

    save: str | None = written("checkpoints", "checkpoint_megatron")
    finetune_hf_dataset: str | None = doc("conversations: a hub name or folder", None, role="data")
    finetune_data_split: str | None = doc("part of the data set", None)
    offline_distillation_data: str | None = doc(
        "hidden states that were written down before, for EAGLE", None, path="read"
    )
    kd: dict[str, Any] | None = doc(
        "distillation: logit_layers, intermediate_layer_pairs, skip_lm_loss, kd_loss_scale, logit_kl_temperature",
        None,
        flags=("export_kd_cfg",),
        file="kd.yaml",
    )
    export_kd_teacher_load: str | None = doc(
        "distillation: the teacher's checkpoint", None, consumes="checkpoint_megatron", role="teacher_checkpoint"
    )
    export_kd_teacher_model_config: str | None = doc(
        "distillation: the teacher's configuration, where its checkpoint has none",
        None,
        flags=("export_kd_teacher_model_config", "teacher_model_config"),
        path="read",
    )
    global_batch_size: int = doc("samples per iteration", 64, role="global_batch")
    train_iters: int | None = doc("iterations", None, role="iterations")
    train_samples: int | None = doc("samples, instead of iterations", None, role="train_samples")
    lr: float = doc("learning rate", 1e-5, role="learning_rate")
    min_lr: float = doc("learning rate at the end", 1e-7, role="min_learning_rate")
    lr_decay_style: str = doc("how it falls", "cosine")
    save_interval: int = doc("iterations between checkpoints", 500, role="save_interval")
    eval_interval: int | None = doc("iterations between validations", None, role="eval_interval")
    eval_iters: int | None = doc("batches of a validation", None)
    log_interval: int = doc("iterations between lines in the log", 10, least=1)
    recompute_activations: bool = doc("recompute attention to save memory", False)
    sequence_parallel: bool = doc("with tensor parallelism: spread activations too", True, role="sequence_parallel")

    def work(self) -> dict[str, Any]:
        return {"fake_quantized": True}


@dataclass(frozen=True, kw_only=True)
class MlmValidateArgs(MegatronLmArgs):
    """What `mlm_validate` does: how many draft tokens of a speculative model are accepted."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/validate.py",)
    WORK: ClassVar[Work | None] = "generation"

    prompts_path: str | None = doc("JSONL of prompts; null is the script's own data set", None, path="read")
    ground_truth_path: str | None = doc("what the model itself would say, from an earlier run", None, path="read")
    save_ground_truth_path: str | None = doc("where to write that down", None, path="write")
    osl: int = doc("tokens of each answer", 64, role="new_tokens")
    steps: int = doc("draft tokens at a time", 1, least=1)

    def work(self) -> dict[str, Any]:
        return {"tokens": _PROMPT_TOKENS, "samples": _MT_BENCH}
