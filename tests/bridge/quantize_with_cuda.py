"""Stands for NVIDIA's quantize.py, whose text is not part of this repository: what it does, for CUDA, in few lines.

It knows nothing of the project that launches it, nor of machines without a GPU.
"""

import argparse
import os

import modelopt.torch.quantization as mtq
import torch
from megatron.bridge import AutoBridge
from megatron.core.utils import unwrap_model
from modelopt.torch.utils.plugins import megatron_prefill

FORMATS = {"fp8": mtq.FP8_DEFAULT_CFG, "nvfp4": mtq.NVFP4_DEFAULT_CFG}


def main(args: argparse.Namespace) -> None:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl")
    bridge = AutoBridge.from_hf_pretrained(args.hf_model_id)
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size, provider.pipeline_model_parallel_size = args.tp, args.pp
    provider.pipeline_dtype = torch.bfloat16
    provider.finalize()
    provider.initialize_model_parallel(seed=0)
    parts = provider.provide_distributed_model(wrap_with_ddp=False)
    model = unwrap_model(parts)[0]

    def calibrate(of: torch.nn.Module) -> None:
        for sample in range(args.calib_size):
            ids = torch.randint(3, 100, (1, 32), generator=torch.Generator().manual_seed(sample)).to("cuda")
            megatron_prefill(of, ids.cuda())

    mtq.quantize(model, FORMATS[args.export_quant_cfg], calibrate)
    assert next(model.parameters()).dtype is torch.bfloat16
    torch.cuda.synchronize()
    bridge.save_megatron_model(parts, args.megatron_save_path)
    print("peak memory of the GPU:", torch.cuda.max_memory_allocated())


if __name__ == "__main__":
    flags = argparse.ArgumentParser()
    for name in ("--hf-model-id", "--export-quant-cfg", "--megatron-save-path", "--calib-dataset", "--prompts"):
        flags.add_argument(name)
    for name in ("--tp", "--pp", "--ep", "--etp", "--calib-size"):
        flags.add_argument(name, type=int, default=1)
    main(flags.parse_args())
