"""The harness with ModelOpt's quantizers: a script, in a folder of its own because Python puts that on its path.

Without this Transformers loads the weights of a checkpoint that holds ModelOpt's state as they are, unquantized,
and the harness reports the scores of the model that it once was.
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    import modelopt.torch.opt as mto

    mto.enable_huggingface_checkpointing()
    # By its place: a script finds no package of ours on its path, as it would find none of them in NVIDIA's container.
    processor = runpy.run_path(str(Path(__file__).resolve().parents[2] / "processor.py"))
    with processor["bf16_products"]():
        runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
