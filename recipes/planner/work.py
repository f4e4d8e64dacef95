"""What the ranks of a job do, as far as memory and time are concerned."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.configured import configured
from recipes.planner.layout import Layout
from scripts.args.distill import DistillBridgeArgs, QatArgs

#: calibration: forward passes with quantizers that watch. scoring: the same with Minitron's importance hooks.
#: training: forward, backward, optimizer. generation: prompts and continuations. transfer: weights in, weights out.
Kind = Literal["calibration", "scoring", "training", "generation", "transfer"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one rank does. A number that does not matter to its kind has no meaning."""

    kind: Kind
    model: ModelFacts
    teacher: ModelFacts | None = None
    tokens: int  # of a sample, at most
    batch: int = 1  # samples that go through a rank at once
    samples: int = 0  # all of them, over all iterations
    global_batch: int = 1  # training: samples of an iteration, over all ranks
    new_tokens: int = 0  # generation: of each continuation
    questions: int = 0  # scoring: of MMLU, asked of all candidates together
    stages: tuple[int | None, int | None] = (None, None)  # layers of the first and the last stage, where given
    sequence_parallel: bool = False  # where there is tensor parallelism
    recompute: int = 0  # training: layers of a chunk that is computed again; 0: nothing is
    distributed_optimizer: bool = True
    fake_quantized: bool = False  # quantizers copy every input and weight of a linear layer
    searched: bool = False  # calibration tries several scales for each layer
    every_expert: bool = False  # each token visits all of them

    @property
    def is_possible(self) -> bool:
        """Whether its numbers can be numbers of things."""
        return min(self.batch, self.global_batch) > 0 and min(self.tokens, self.samples, self.new_tokens) >= 0


def layout_of_work(job: Job) -> Layout:
    """The layout of a job, whose sizes may be in a configuration of the script instead of in its arguments.

    What a configuration leaves out is 1, as in a model that Megatron-Bridge builds from Hugging Face; its own recipe
    for Llama 3 8B, which `qat` starts from where it is given no model, has context parallel 2.
    """
    layout = job.layout
    if not isinstance(job.resolved, DistillBridgeArgs | QatArgs):
        return layout
    own = isinstance(job.resolved, QatArgs) and job.resolved.hf_path is None
    read = partial(configured, job.resolved.config, job.extra_args)
    return Layout(
        nodes=layout.nodes,
        processes=layout.processes,
        tp=read("model.tensor_model_parallel_size", 1),
        pp=read("model.pipeline_model_parallel_size", 1),
        cp=read("model.context_parallel_size", 2 if own else 1),
        ep=read("model.expert_model_parallel_size", 1),
        etp=read("model.expert_tensor_parallel_size", 1),
    )
