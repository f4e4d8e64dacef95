"""Megatron-Bridge and ModelOpt's plugins, imported and set to what a CPU can do.

Transformer Engine, nvidia-resiliency-ext and flash-linear-attention cannot be built without CUDA. Megatron-Core finds
out by itself that they are missing and has local layers; Megatron-Bridge imports some names of them unconditionally.
"""

import functools
import multiprocessing.spawn
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scripts.engines.cpu_runtime.packages import made_of
from scripts.engines.hf.nvfp4 import cpu_kernels

#: Of a model's provider: no kernel that needs CUDA to be built. The weights of a restored model are made, then loaded.
_NO_KERNELS = {
    "use_cpu_initialization": True,
    "perform_initialization": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "cross_entropy_loss_fusion": False,
    "batch_p2p_comm": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
}
#: ModelOpt's kernels stay replaced until the process ends.
_KERNELS = ExitStack()
_done = False


def install(*, te_layers: bool = False) -> None:
    """Import Megatron-Bridge and set it up, once; with Transformer Engine's layers in plain torch, or without them."""
    global _done
    if _done:
        return
    _done = True
    if te_layers:
        from scripts.engines.cpu_runtime import te_layers as stand_ins

        sys.modules.update(stand_ins.modules())
    _import_hybrids(te_layers=te_layers)
    import megatron.core.extensions.transformer_engine
    import megatron.core.inference.communication_utils
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # so far without Transformer Engine: HAVE_TE is false in all of them

    megatron.core.inference.communication_utils._is_cuda = lambda _: None  # which asserts only
    names = {} if te_layers else _transformer_engine()
    with _while_importing(names):
        import megatron.bridge
    import megatron.core.dist_checkpointing.strategies.torch  # HAVE_NVRX is false

    with _while_importing({**names, **_resiliency()}):
        import megatron.bridge.training.distill
        import megatron.bridge.training.pretrain
    if not te_layers:
        from scripts.engines.cpu_runtime import attention

        attention.register()
        _replace_search_spaces()
        import megatron.bridge.peft.utils

        megatron.bridge.peft.utils.HAVE_TE = False  # it asks whether Megatron-Core has the names, which are empty ones
    _set_providers(local=not te_layers)
    _set_trainer()
    _fill_optimizers()
    _KERNELS.enter_context(cpu_kernels())
    _spawn_without_main()


def _import_hybrids(*, te_layers: bool) -> None:
    """What asks for mamba-ssm while it is imported; transformers, which asks later, does without."""
    from scripts.engines.cpu_runtime import mamba_layers

    with _while_importing(mamba_layers.modules()):
        import megatron.core.ssm.mamba_mixer  # noqa: F401

        if te_layers:
            import modelopt.torch.nas.plugins.megatron  # noqa: F401


@contextmanager
def _while_importing(modules: dict[str, types.ModuleType]) -> Iterator[None]:
    """With `modules` to be found: what looks for them later finds that they are missing."""
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def _transformer_engine() -> dict[str, types.ModuleType]:
    import torch

    layers = ("Linear", "LayerNormLinear", "TransformerLayer", "LayerNorm", "RMSNorm", "GroupedLinear")
    classes = {name: type(name, (torch.nn.Module,), {}) for name in layers}
    ops = types.SimpleNamespace(Sequential=type("Sequential", (torch.nn.Module,), {}))
    pytorch = made_of("transformer_engine.pytorch", **classes, ops=ops)
    engine = made_of("transformer_engine", __version__="0.0.0", pytorch=pytorch)
    return {"transformer_engine": engine, "transformer_engine.pytorch": pytorch}


def _resiliency() -> dict[str, types.ModuleType]:
    def anything(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    inprocess = made_of("nvidia_resiliency_ext.inprocess", __getattr__=anything)
    package = made_of("nvidia_resiliency_ext", inprocess=inprocess)
    return {package.__name__: package, inprocess.__name__: inprocess}


def _replace_search_spaces() -> None:
    """ModelOpt's search spaces name Transformer Engine's layers; its loader of models imports functions from there."""
    import modelopt.torch.nas.plugins
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.post_training.modelopt.hybrid import model_specs
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("pruning needs Transformer Engine's layers")

    def local(**_: Any) -> Any:
        return model_specs.get_hybrid_stack_modelopt_spec(local_core_attention=True)

    model_specs.Norm = hybrid_block.TENorm = WrappedTorchNorm
    names = {"get_te_hybrid_stack_spec": local, "get_te_mamba_stack_spec": local, "parse_main_layer_chars": missing}
    module = made_of("modelopt.torch.nas.plugins.megatron", **names)
    sys.modules[module.__name__] = module
    modelopt.torch.nas.plugins.megatron = module


def _set_providers(*, local: bool) -> None:
    """Whatever a model's provider was told, it builds layers without fused kernels: Megatron-Core's local ones."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec
    from megatron.bridge.models.hybrid.hybrid_provider import HybridModelProvider

    told = _NO_KERNELS | ({"sequence_parallel": False} if local else {})  # local layers keep whole sequences

    def set_up(provider: Any) -> None:
        finalize = provider.finalize

        def finalized(self: Any) -> Any:
            for name, value in told.items():
                if name in type(self).__dataclass_fields__:
                    setattr(self, name, value)
            if local and provider is GPTModelProvider:
                self.transformer_layer_spec = local_layer_spec
            return finalize(self)

        provider.finalize = finalized

    for provider in (GPTModelProvider, HybridModelProvider):
        set_up(provider)


def _set_trainer() -> None:
    import megatron.bridge.training.config as config
    import megatron.bridge.training.initialize as initialize
    import megatron.bridge.training.setup as setup
    import megatron.core.datasets.helpers_cpp  # noqa: F401 - the wheel has it compiled, without the Makefile
    import megatron.core.datasets.utils as utils

    setup.initialize_megatron = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)
    utils.compile_helpers = lambda: None
    if hasattr(initialize, "compile_helpers"):
        initialize.compile_helpers = utils.compile_helpers
    made = config.CheckpointConfig.__init__

    def with_cores_strategy(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.async_strategy = "mcore"  # the other one is nvidia-resiliency-ext's

    config.CheckpointConfig.__init__ = with_cores_strategy


def _fill_optimizers() -> None:
    """torch's AdamW has no state before its first step, and a training that goes on asks for it: FusedAdam has."""
    import torch
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    state_dict = DistributedOptimizer.state_dict

    def filled(self: Any) -> Any:
        for parameter in (one for group in self.optimizer.param_groups for one in group["params"]):
            if not self.optimizer.state.get(parameter):
                empty = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **empty}
        return state_dict(self)

    DistributedOptimizer.state_dict = filled


def _spawn_without_main() -> None:
    """Processes that write checkpoints run spawned.py, not the main module, which would import Megatron as it is."""
    prepared = multiprocessing.spawn.get_preparation_data

    def on_cpu(name: str) -> dict[str, Any]:
        told = prepared(name)
        told.pop("init_main_from_name", None)
        return told | {"init_main_from_path": str(Path(__file__).with_name("spawned.py"))}

    multiprocessing.spawn.get_preparation_data = on_cpu
