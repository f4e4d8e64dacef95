"""Open a Transformers model: safetensors only, evaluation mode, every failure with a remedy."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode on `device`, and its tokenizer with a pad token."""

    model: Any
    tokenizer: Any
    device: "torch.device"


def _config(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    folder = Path(path)
    if folder.is_dir():
        _check_folder(folder, trust_remote_code)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _as_job_error(path, error) from error


def _check_folder(folder: Path, trust_remote_code: bool) -> None:
    if not (folder / "config.json").is_file():
        remedy = "Give the folder that `save_pretrained` wrote."
        raise JobError("model_missing", f"{folder} has no config.json.", remedy)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise JobError(
            "model_damaged", f"{folder / 'config.json'} is not JSON: {error}.", "Fetch the model again."
        ) from error
    if isinstance(config, dict) and config.get("auto_map") and not trust_remote_code:
        cause = f"{folder} brings its own Python code ({', '.join(sorted(config['auto_map']))})."
        raise JobError("remote_code", cause, "Read that code, then set args.trust_remote_code=true.")


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        _check_shards(folder)
        return
    unsafe = sorted(path.name for pattern in UNSAFE for path in folder.glob(pattern))
    if unsafe:
        cause = f"{folder} has its weights as pickles only ({unsafe[0]}), which can run code when they are opened."
        remedy = "Convert them on a machine you can afford to lose: load there, then save_pretrained(folder)."
        raise JobError("unsafe_weights", cause, remedy)
    raise JobError("model_missing", f"{folder} has no *.safetensors file.", "Fetch the model again.")


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise JobError("model_damaged", f"{index} is not a weight index: {error}.", "Fetch the model again.") from error
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise JobError("model_missing", f"{folder} lacks {', '.join(missing[:3])}.", "Fetch the model again.")


def _as_job_error(path: str, error: Exception) -> JobError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return JobError(
            "remote_code", f"{path} brings its own Python code.", "Read it, then set args.trust_remote_code=true."
        )
    if isinstance(error, OSError):
        return JobError("model_missing", f"{path} cannot be opened: {text}", "Check args.hf_model_id and the network.")
    return JobError("model_unknown", f"{path} cannot be built: {text}", "A newer transformers may know this model.")


def linear_shapes(path: str, trust_remote_code: bool) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer that a format would quantize, from the configuration alone.

    Built on the meta device, so no weight is read. Experts that Transformers keeps as one 3-D tensor count as the
    linear layers they are. Output heads are left out, as ModelOpt leaves them unquantized.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    config = _config(path, trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError) as error:
        raise _as_job_error(path, error) from error
    head = model.get_output_embeddings()
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            shapes[name] = (module.out_features, module.in_features)
        elif name.endswith("experts"):
            for key, weight in module.named_parameters(recurse=False):
                if weight.ndim == 3:
                    shapes[f"{name}.{key}"] = (weight.shape[1], weight.shape[2])
    return shapes


def pick_device(device: str) -> "torch.device":
    """auto is CUDA where there is a GPU. Raises JobError('no_cuda')."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise JobError("no_cuda", "device=cuda, but torch sees no CUDA GPU.", "Use device=auto or device=cpu.")
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return torch.device(wanted)


def load_tokenizer(path: str, trust_remote_code: bool) -> Any:
    """The tokenizer; one without a pad token pads with its end token, so that the vocabulary stays as it is."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        cause = f"{path} has no usable tokenizer: {text}"
        remedy = "Put tokenizer.json and tokenizer_config.json beside the weights."
        raise JobError("tokenizer_missing", cause, remedy) from error
    # Transformers answers a folder without tokenizer files with an empty tokenizer of the model's class.
    if not len(tokenizer) or not tokenizer("tokenizer check")["input_ids"]:
        cause = f"{path} has no tokenizer files."
        raise JobError("tokenizer_missing", cause, "Put tokenizer.json and tokenizer_config.json beside the weights.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(path: str, *, dtype: str, device: str, trust_remote_code: bool) -> LoadedModel:
    """Load the whole model onto one device in `dtype`, in evaluation mode, from safetensors only.

    Raises JobError: model_missing, model_damaged, unsafe_weights, remote_code, tokenizer_missing, no_cuda.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    place = pick_device(device)
    config = _config(path, trust_remote_code)
    if Path(path).is_dir():
        _check_weights(Path(path))
    tokenizer = load_tokenizer(path, trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except SafetensorError as error:
        raise JobError(
            "model_damaged", f"A weight file of {path} cannot be read: {error}.", "Fetch it again."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise _as_job_error(path, error) from error
    return LoadedModel(model=model.to(place).eval(), tokenizer=tokenizer, device=place)
