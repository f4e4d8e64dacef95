"""Arguments of `prune`."""

import re
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

from scripts.args.meaning import ScriptArgs, Work, doc
from scripts.args.shared import hub_model, remote_code, uneven, written

#: A score function by the name that NVIDIA's script has for it: so many percent of MMLU.
MMLU_SHARE = re.compile(r"mmlu_(100|[1-9]\d?)pct")
#: Questions of MMLU (arXiv:2009.03300).
MMLU = 14042


@dataclass(frozen=True, kw_only=True)
class PruneArgs(ScriptArgs):
    """What `prune` does (Minitron, arXiv:2407.14679). Source: Model-Optimizer examples/megatron_bridge."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Model-Optimizer/examples/megatron_bridge/prune_minitron.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.prune:prune"
    TE_LAYERS: ClassVar[bool] = True
    WORK: ClassVar[Work | None] = "scoring"
    DATA_PARALLEL: ClassVar[bool] = False

    hf_model_name_or_path: str = hub_model("Qwen/Qwen3-8B")
    trust_remote_code: bool = remote_code()
    output_hf_path: str | None = written("the pruned model", "checkpoint_hf")
    output_megatron_path: str | None = written("the pruned model as a Megatron checkpoint", "checkpoint_megatron")
    prune_target_params: float | None = doc("search: parameters to keep, such as 6e9", None, role="kept_parameters")
    prune_target_active_params: float | None = doc(
        "search: parameters active for a token, in a MoE model", None, role="kept_active_parameters"
    )
    prune_target_memory_mb: float | None = doc("search: memory to fit in, in MB", None, role="kept_memory")
    prune_export_config: dict[str, Any] | None = doc(
        "a fixed architecture instead of a search: {hidden_size: 3072, num_layers: 32, ...}", None, role="pruned_sizes"
    )
    hparams_to_skip: list[str] | None = doc(
        "what the search leaves alone, such as [num_attention_heads]", None, role="unpruned"
    )
    max_width_pruning: float = doc("search: part of a width that may go", 0.4, role="width_share")
    max_depth_pruning: float = doc("search: part of the layers that may go", 0.2, role="depth_share")
    top_k: int = doc("search: candidates that are scored", 10, least=1)
    prune_score_func: str | None = doc(
        "search: how candidates are scored; null is mmlu_5pct, or, for the bridge engine, loss on text kept aside",
        None,
    )
    score_lower_bound: float | None = doc("search: stop at a candidate that scores this", None, engine="nvidia")
    inference_batch_size: int | None = doc("batch size that the memory target is for", None, least=1)
    ss_channel_divisor: int | None = doc("search: widths are multiples of this", None, least=1)
    prune_intermediate_ckpt: str | None = doc("where importance scores are kept, to go on with", None, path="write")
    no_moe_grouped_gemm: bool = doc("experts one after another, for models whose grouped form fails", False)
    calib_dataset_name: str | None = doc(
        "a data set that ModelOpt knows, or a path; null is the script's own", None, role="data"
    )
    calib_num_samples: int = doc("samples that importance is estimated on", 1024, role="samples")
    calib_batch_size: int = doc("samples per forward pass", 1, flags=("calib_batch_size", "calib_mbs"), role="batch")
    seq_length: int = doc("tokens per sample", 4096, role="sequence")
    pp_size: int = doc("pipeline parallel size, the only parallelism it has", 1, role="pp")
    num_layers_in_first_pipeline_stage: int | None = uneven("first_stage")
    num_layers_in_last_pipeline_stage: int | None = uneven("last_stage")

    def work(self) -> dict[str, Any]:
        """A search asks each candidate 5 % of MMLU, as the script's own score function says."""
        return {"questions": 0 if self.prune_export_config is not None else self.top_k * ceil(0.05 * MMLU)}
