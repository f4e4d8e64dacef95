"""What is compared with the golden files: a recipe, a profile and options each, with every name pinned.

Nothing is reached: no cluster, engine or service, and no repository. What `nemo experiment run ... --dryrun` prints
after `would submit:` is `Place.text`, which is what `text_of` returns.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from executors.base import SchedulerJob

FOLDER = Path(__file__).parent
COMMAND = "python -m tests.golden.regenerate"
#: What stands in the files for the folder that held the runs.
HOME = "/home/me/.nemo_run"
#: A run on the profile `far` that has not ended, and its job.
PARENT, PARENT_JOB = "probe_1795214400000-00000a", "4711"
RUN_ID = "{recipe}_1795214403955-{number:06x}"

PROFILES = """
cluster:
  extends: slurm
  image: null
  account: my_account
  partition: h100
  time: 4:00:00
  output_root: /shared/me/runs
  setup: ["source /shared/me/venv/bin/activate"]
  env: {GREETING: "it's $HOME, \\"quoted\\"", HF_HOME: /shared/me/hf}
  secrets: [HF_TOKEN]
far:
  extends: cluster
  host: login.example.com
  user: me
  port: 2222
  identity: /home/me/.ssh/id_ed25519
  job_dir: /shared/me/nemo
  gpus: 8
  cpus_per_task: 16
  mem: "0"
  exclusive: true
  qos: normal
  constraint: a100|h100
  comment: it's mine
  additional: {licenses: "matlab:1"}
  image: nvcr.io/nvidia/nemo:26.06
  squash_dir: /shared/me/images
  mounts: ["/shared/my data:/data:ro"]
  workdir: /data
  srun_args: [--mpi=pmix]
  retries: 2
box:
  extends: docker
  image: nvcr.io/nvidia/nemo:26.06
  host: unix:///nowhere/docker.sock
  gpus: -1
  user: 1000:1000
  mounts: ["/data/models:/models:ro", "cache:/cache"]
  ulimits: [memlock=-1, "stack=67108864"]
  ipc: host
  env: {GREETING: "it's $HOME, \\"quoted\\""}
  secrets: [HF_TOKEN]
cloud:
  extends: lepton
  image: nvcr.io/nvidia/nemo:26.06
  node_group: h100-pool
  resource_shape: gpu.8xh100-80gb
  nemo_run_dir: /mnt/nemo
  mounts: [{path: /me, mount_path: /mnt, from: "node-nfs:home"}]
  gpus: 8
  image_pull_secrets: [nvcr]
  queue_priority: mid-4000
  env: {GREETING: "it's $HOME, \\"quoted\\""}
  secrets: [HF_TOKEN]
  pre_launch: ["nvidia-smi"]
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden file: its name, and the command line that it stands for."""

    file: str
    recipe: str
    executor: str
    values: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    force_squash: bool = False
    sweep: Mapping[str, Sequence[str]] = field(default_factory=dict)


_RANKS = {"torchrun.nnodes": "2", "torchrun.nproc_per_node": "2"}
_HF = {"engine": "hf"}  # one process
_MODEL = {"args.hf_model_id": "Qwen/Qwen3-8B", "args.trust_remote_code": "true"}
CASES = (
    Case(file="local.json", recipe="quantize_tiny", executor="local"),
    Case(file="local_torchrun.json", recipe="probe", executor="local", values={"torchrun.nproc_per_node": "2"}),
    Case(file="slurm.sh", recipe="quantize_tiny", executor="cluster"),
    Case(file="slurm_quantize.sh", recipe="quantize_fp8", executor="slurm"),  # the first command of the README
    Case(file="slurm_torchrun.sh", recipe="probe", executor="cluster", values=_RANKS),
    Case(file="slurm_array.sh", recipe="probe", executor="cluster", sweep={"args.message": ("a", "b c", "$d")}),
    Case(
        file="slurm_ssh_container.sh",
        recipe="quantize_tiny",
        executor="far",
        values=_HF,
        after=(PARENT,),
        force_squash=True,
    ),
    Case(file="slurm_ssh_container_torchrun.sh", recipe="probe", executor="far", values=_RANKS),
    Case(file="docker.json", recipe="quantize_tiny", executor="box", values=_HF),
    Case(file="docker_torchrun.json", recipe="probe", executor="box", values={"torchrun.nproc_per_node": "2"}),
    Case(file="lepton.txt", recipe="quantize_tiny", executor="cloud", values=_HF),
    Case(file="lepton_torchrun.txt", recipe="probe", executor="cloud", values=_RANKS),
)


def produced() -> Iterator[tuple[str, str]]:
    """Every golden file's name, and what it should hold today."""
    with surroundings() as profiles:
        for case in CASES:
            yield case.file, text_of(case, profiles)


@contextmanager
def surroundings() -> Iterator[Path]:
    """A user in a folder that holds PROFILES, with one run from before; yields the file of the profiles."""
    from nemo_run.config import get_nemorun_home, set_nemorun_home

    before, home, variables = Path.cwd(), get_nemorun_home(), dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "executors.yaml"
        file.write_text(PROFILES, encoding="utf-8")
        try:
            os.chdir(folder)
            set_nemorun_home(str(file.parent / "home"))
            for name in ("DOCKER_HOST", "NEMO_RUN_DIR", "HF_TOKEN"):
                os.environ.pop(name, None)
            _submit_parent(file)
            yield file
        finally:
            os.chdir(before)
            set_nemorun_home(home)
            os.environ.clear()
            os.environ.update(variables)


def _submit_parent(profiles: Path) -> None:
    """What a submission of PARENT would have left here."""
    from executors.profiles.load import load_profile
    from recipes.experiment.store import RunFolder
    from scripts.run.record import Record
    from tests.jobs import submitted

    profile, _ = load_profile("far", {}, files=profiles)
    folder, run_dir = RunFolder.of(PARENT), Path("/shared/me/runs", PARENT)
    Record.submit(folder.dir, id=PARENT, recipe="probe")
    job = SchedulerJob(run_id=PARENT, id=PARENT_JOB, run_dir=str(run_dir), folder="")
    submitted(folder, profile, "far", run_dir=run_dir, scheduled=job)


def text_of(case: Case, profiles: Path) -> str:
    """What a dry run says would be submitted."""
    from recipes.catalogue import find
    from recipes.experiment.prepare import prepare_all
    from recipes.experiment.stage import Options, stages_of
    from recipes.experiment.submit import array_of, would_send
    from recipes.values import set_value
    from scripts.run.problems import ProblemsError

    partial = find(case.recipe).build()
    problems = [problem for key, value in case.values.items() for problem in set_value(partial, key, value)]
    if problems:
        raise ProblemsError(problems)
    stages = [replace(stage, after=case.after) for stage in stages_of(partial, case.sweep)]
    options = Options(profiles=profiles, online=False, force_squash=case.force_squash)
    jobs = []
    for number, job in enumerate(prepare_all(stages, case.executor, options)):
        run_id = RUN_ID.format(recipe=case.recipe, number=number)
        run_dir = Path(job.place.run_root()) / run_id
        jobs.append(replace(job, id=run_id, run_dir=run_dir, secrets=job.place.secrets_path(run_id)))
    made = would_send(array_of(jobs)[0] if case.sweep else jobs[0])
    return _settled(made["submits"].replace(str(profiles.parent / "home"), HOME)).rstrip("\n") + "\n"


def _settled(text: str) -> str:
    """Without the code's size and digest, and the number that NeMo-Run draws for torchrun on one machine."""
    text = re.sub(r"--rdzv-id(\W+)\d{1,5}\b", r"--rdzv-id\1NUMBER", text)
    piece = r'"<\d+ bytes, sha256 [0-9a-f]{64}>"'
    return re.sub(rf"{piece}(,\s+{piece})*", '"<the package>"', text)


def differences(files: Callable[[], Iterator[tuple[str, str]]] = produced, folder: Path = FOLDER) -> list[str]:
    """What is missing, stale or produced by nothing, a line each."""
    found, expected = [], {path.name for path in folder.iterdir() if path.suffix not in (".py", ".md", "")}
    for name, text in files():
        path = folder / name
        if name not in expected:
            found.append(f"{name} is missing")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{name} is stale")
        expected.discard(name)
    return [*found, *(f"{name} is produced by nothing" for name in sorted(expected))]
