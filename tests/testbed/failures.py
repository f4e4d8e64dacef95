"""Makes the logs of tests/unit/scripts/run/failures by real failures: python -m tests.testbed.failures

Each program below is run as it stands, with what it prints (both streams) as its log. Paths of this machine are
shortened. Logs that need a GPU or another cluster are not made here: they are in `reported`, written after what the
programs named there print.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "unit" / "scripts" / "run" / "failures" / "made"

#: What a program does before it fails: caught errors, warnings, progress. `%s` is one line of source.
_GOT_OVER = """
import logging, traceback
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
def attempt():
    {decoy}
try:
    attempt()
except Exception:
    {told}
for step in range(20):
    logging.info("calibrating sample %d of 20", step)
"""
_DECOYS = {
    "module": "import flash_attn_of_nobody",
    "hub": "from transformers import AutoConfig; AutoConfig.from_pretrained('no-such-owner/no-such-model')",
    "disk": "raise OSError(28, 'No space left on device', '/tmp/cache/kernel.so')",
    "memory": "import torch; torch.zeros(1 << 50)",
    "gpu": "import torch; torch.zeros(1, device='cuda')",
    "port": "import socket; a = socket.create_server(('127.0.0.1', 0)); socket.create_server(a.getsockname())",
    "permission": "raise PermissionError(13, 'Permission denied', '/root/.triton')",
    "shapes": "import torch; torch.nn.Linear(2, 3).load_state_dict({'weight': torch.zeros(4, 2)})",
}
_TOLD = {
    "printed": "traceback.print_exc()",
    "logged": "logging.exception('going on without it')",
    "warned": "import warnings; warnings.warn('going on without it: ' + traceback.format_exc().splitlines()[-1])",
    "line": "print('going on without it:', traceback.format_exc().splitlines()[-1])",
}
_ENDS = {
    "unknown": (None, "raise ValueError('calib_size must be positive, and is -1')"),
    "disk": ("disk_full", "open('/dev/full', 'w', buffering=1).write('x' * 10000)"),
    "memory": ("host_out_of_memory", "x = bytearray(1 << 60)"),
    "missing": ("missing_module", "import megatron_of_nobody.bridge"),
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A program that fails; `diagnosis` is what is to be said of it, None for nothing."""

    diagnosis: str | None
    source: str
    ranks: int = 1  # more of them are run by torchrun


def _failures() -> dict[str, Failure]:
    found: dict[str, Failure] = {}
    tells = list(_TOLD.items())
    for number, (decoy, source) in enumerate(_DECOYS.items()):
        for end, (diagnosis, last) in _ENDS.items():
            if end != "unknown" and (number + list(_ENDS).index(end)) % 3:
                continue  # every decoy before the unknown; each of the others before some
            if end == decoy:
                continue
            how, told = tells[(number + len(found)) % len(tells)]
            program = _GOT_OVER.format(decoy=source, told=told) + last + "\n"
            found[f"{decoy}_{how}_then_{end}"] = Failure(diagnosis=diagnosis, source=program)
    for name, (diagnosis, source) in _ALONE.items():
        found[name] = Failure(diagnosis=diagnosis, source=source)
    for name, (diagnosis, source) in _RANKS.items():
        found[name] = Failure(diagnosis=diagnosis, source=source, ranks=2)
    return found


_ALONE: dict[str, tuple[str | None, str]] = {
    "state_dict": (
        "wrong_checkpoint",
        "import torch\ntorch.nn.Linear(2, 3).load_state_dict({'weight': torch.zeros(4, 2), 'bias': torch.zeros(3)})",
    ),
    "no_driver": ("no_gpu", "import torch\ntorch.zeros(1, device='cuda')"),
    "cpu_allocator": ("host_out_of_memory", "import torch\ntorch.zeros(1 << 50)"),
    "numpy_memory": ("host_out_of_memory", "import numpy\nnumpy.zeros((1 << 50,))"),
    "hub_offline": (
        "hub_unreachable",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained('no-such-owner/no-such-model')",
    ),
    "no_such_folder": (
        "path_not_on_node",
        "from transformers import AutoModelForCausalLM\nAutoModelForCausalLM.from_pretrained('/models/not/here')",
    ),
    "flags": (
        "unknown_flag",
        "import argparse\nparser = argparse.ArgumentParser(prog='quantize.py')\nparser.add_argument('--calib-size')\n"
        "parser.parse_args(['--calib-siez', '3'])",
    ),
    "choice": (
        "bad_flag_value",
        "import argparse\nparser = argparse.ArgumentParser(prog='quantize.py')\n"
        "parser.add_argument('--format', choices=['fp8'])\nparser.parse_args(['--format', 'fp9'])",
    ),
    "name_that_moved": ("missing_name", "from modelopt.torch.quantization import NO_SUCH_CFG"),
    "attribute_that_moved": (
        "missing_name",
        "import modelopt.torch.quantization as mtq\nmtq.NO_SUCH_CFG",
    ),
    "port": (
        "port_in_use",
        "import socket\none = socket.create_server(('127.0.0.1', 0))\nsocket.create_server(one.getsockname())",
    ),
    "store_port": (
        "port_in_use",
        "import socket\nfrom torch import distributed\none = socket.create_server(('127.0.0.1', 0))\n"
        "distributed.TCPStore('127.0.0.1', one.getsockname()[1], 1, True)",
    ),
    "nobody_joins": (
        "rank_lost",
        "import socket\nfrom datetime import timedelta\nfrom torch import distributed\n"
        "with socket.create_server(('127.0.0.1', 0)) as one:\n    port = one.getsockname()[1]\n"
        "distributed.TCPStore('127.0.0.1', port, 2, True, timeout=timedelta(seconds=1))",
    ),
    "open_files": (
        "too_many_open_files",
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "kept = [open('/dev/null') for _ in range(100)]",
    ),
    "read_only": (
        "read_only_storage",
        "import atexit, subprocess, tempfile\nfolder = tempfile.mkdtemp()\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', folder], check=True)\n"
        "atexit.register(subprocess.run, ['umount', folder])\nopen(f'{folder}/model.safetensors', 'w')",
    ),
    "killed": (
        "process_killed",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os; "
        "os.kill(os.getpid(), 9)'], check=True)",
    ),
    "segmentation": (
        "segmentation_fault",
        "import ctypes, faulthandler\nfaulthandler.enable()\nctypes.string_at(0)",
    ),
    "chat": (
        "chat_template_missing",
        "import transformers\nfrom tokenizers import Tokenizer, models\n"
        "one = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))\n"
        "one.apply_chat_template([{'role': 'user', 'content': 'x'}])",
    ),
    "custom_code": (
        "remote_code_not_trusted",
        "import pathlib, tempfile, transformers\nfolder = pathlib.Path(tempfile.mkdtemp())\n"
        '(folder / \'config.json\').write_text(\'{"model_type": "new", "auto_map": {"AutoConfig": "x.C"}}\')\n'
        "transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)",
    ),
    "key": (None, "config = {'hidden_size': 8}\nconfig['num_attention_heads']"),
    "assertion": (None, "size = 3\nassert size % 2 == 0, 'an even size is needed'"),
    "json": (None, "import json\njson.loads('{\"a\": ')"),
    "exit_status": (None, "print('nothing to do')\nraise SystemExit(3)"),
    "shape_of_a_product": (None, "import torch\ntorch.zeros(2, 3) @ torch.zeros(2, 3)"),
    "handled_import": (
        None,
        "def load():\n    try:\n        import flash_attn_of_nobody\n    except ImportError:\n"
        "        raise ValueError('attention must be one of eager, sdpa')\nload()",
    ),
    "handled_disk": (
        None,
        "try:\n    raise OSError(28, 'No space left on device')\nexcept OSError:\n    undefined_name",
    ),
    "because_of_disk": (
        "disk_full",
        "try:\n    raise OSError(28, 'No space left on device')\n"
        "except OSError as error:\n    raise RuntimeError('the checkpoint was not written') from error",
    ),
    "warned_of_no_gpu": (
        None,
        "import warnings\nwarnings.warn('CUDA initialization: Found no NVIDIA driver on your system.')\n"
        "raise ValueError('a batch of 0')",
    ),
    "logged_retries": (
        "hub_unreachable",
        "import logging\nlogging.basicConfig()\n"
        "for wait in (1, 2, 4):\n    logging.warning('429 Too Many Requests; retrying in %s s', wait)\n"
        "from transformers import AutoConfig\nAutoConfig.from_pretrained('no-such-owner/no-such-model')",
    ),
    "worker_of_a_loader": (
        None,
        "import torch\nclass Data(torch.utils.data.Dataset):\n    def __len__(self): return 4\n"
        "    def __getitem__(self, i): raise IndexError('row 3 is not there')\n"
        "list(torch.utils.data.DataLoader(Data(), num_workers=1))",
    ),
    "worker_without_module": (
        "missing_module",
        "import torch\nclass Data(torch.utils.data.Dataset):\n    def __len__(self): return 4\n"
        "    def __getitem__(self, i): import tokens_of_nobody\n"
        "list(torch.utils.data.DataLoader(Data(), num_workers=1))",
    ),
    "worker_killed": (
        "host_out_of_memory",
        "import os, torch\nclass Data(torch.utils.data.Dataset):\n    def __len__(self): return 4\n"
        "    def __getitem__(self, i): os.kill(os.getpid(), 9)\n"
        "list(torch.utils.data.DataLoader(Data(), num_workers=1))",
    ),
    "library": ("library_missing", "import ctypes\nctypes.CDLL('libnccl_of_nobody.so.2')"),
}

_INIT = "import os, sys\nfrom torch import distributed\ndistributed.init_process_group('gloo')\n"
_RANKS: dict[str, tuple[str | None, str]] = {
    "ranks_one_out_of_disk": (
        "disk_full",
        _INIT + "if os.environ['RANK'] == '1':\n    raise OSError(28, 'No space left on device', '/out/model')\n"
        "distributed.barrier()",
    ),
    "ranks_one_without_module": (
        "missing_module",
        _INIT + "if os.environ['RANK'] == '1':\n    import nothing_of_nobody\ndistributed.barrier()",
    ),
    "ranks_one_killed": (
        "process_killed",
        _INIT + "if os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\ndistributed.barrier()",
    ),
    "ranks_one_unknown": (
        None,
        _INIT + "if os.environ['RANK'] == '1':\n    raise ValueError('a layer of no kind')\n"
        "import time\ntime.sleep(60)",
    ),
    "ranks_one_unknown_and_one_deaf": (  # torchrun kills it in the end
        None,
        _INIT + "import signal, time\nif os.environ['RANK'] == '1':\n    raise ValueError('a layer of no kind')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(90)",
    ),
    "ranks_got_over_a_disk": (
        None,
        _INIT + "import traceback\ntry:\n    raise OSError(28, 'No space left on device', '/cache')\n"
        "except OSError:\n    traceback.print_exc()\n"
        "for step in range(20):\n    print(f'iteration {step} of 20', flush=True)\n"
        "distributed.barrier()\nif os.environ['RANK'] == '1':\n    raise ValueError('a layer of no kind')\n"
        "import time\ntime.sleep(60)",
    ),
    "ranks_segmentation": (
        "segmentation_fault",
        _INIT + "import ctypes\nif os.environ['RANK'] == '1':\n    ctypes.string_at(0)\nimport time\ntime.sleep(60)",
    ),
}


def _log_of(failure: Failure, folder: Path) -> str:
    program = folder / "program.py"
    program.write_text(failure.source, encoding="utf-8")
    ours = [sys.executable, "-u", str(program)]
    if failure.ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={failure.ranks}"]
        ours = [sys.executable, "-u", *torchrun, str(program)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ours,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    assert done.returncode, f"it did not fail: {failure.source}"
    text = (
        done.stdout.replace(str(folder), "/job")
        .replace(f"{sys.prefix}/", "/opt/venv/")
        .replace(sys.prefix, "/opt/venv")
    )
    return re.sub(r"/\S*/lib/python3\.\d+/", "/opt/python/", text)


def main() -> None:
    """Write every log anew, with the diagnosis that is due in its first line."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:]
    for name, failure in _failures().items():
        if wanted and name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = _log_of(failure, Path(folder))
        kind = "launcher" if failure.ranks > 1 else "rank0"
        (FOLDER / f"{name}.{kind}.log").write_text(f"# {failure.diagnosis or 'nothing'}\n{text}", encoding="utf-8")
        print(name, len(text), flush=True)


if __name__ == "__main__":
    main()
