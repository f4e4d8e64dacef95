"""Open a Transformers model: safetensors only, evaluation mode, every failure with a remedy."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.checkpoints.causal import packed, refused
from scripts.checkpoints.huggingface import exported_format
from scripts.checkpoints.model import Trouble, config_problem, read_config, weights_problem
from scripts.run.problems import JobError
from scripts.run.record import Record
from scripts.tiny.model import local_model

if TYPE_CHECKING:
    import torch


#: What a model's folder holds beside weights and config.json.
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "chat_template*", "*.jinja", "*processor_config.json", "generation_config.json",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode on `device`, and its tokenizer with a pad token."""

    model: Any
    tokenizer: Any
    device: "torch.device"


def source_folder(name: str, record: Record) -> Path:
    """The model's folder; a tiny model is trained now if it is not cached, a hub model fetched."""
    folder = Path(local_model(name, record))
    if folder.exists():
        return folder
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.py", *COMPANIONS]
    with record.phase("download"):
        try:
            return Path(snapshot_download(name, allow_patterns=patterns))
        except Exception as error:  # each transport has errors of its own; all mean that the model cannot be had
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            remedy = "Name a local folder, or set HF_TOKEN where the model is gated."
            raise JobError("missing_model", f"{name} cannot be fetched: {said}", remedy) from error


def _config(path: str, trust_remote_code: bool) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    folder = Path(path)
    if folder.is_dir():
        _refuse(path, config_problem(folder, trust_remote_code=trust_remote_code))
        _refuse(path, refused(read_config(folder) or {}) or packed(exported_format(folder)))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise _as_job_error(path, error) from error
    if isinstance(quantization := getattr(config, "quantization_config", None), dict):
        quantization["dequantize"] = True
    return config


def _refuse(path: str, found: Trouble | None) -> None:
    if found is not None:
        name, cause, remedy = found
        raise JobError(name, f"{path}: {cause}.", remedy or "Name a model's folder or a hub name.")


def first_line(error: Exception) -> str:
    """What an error of a library says, without the page that follows."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _as_job_error(path: str, error: Exception) -> JobError:
    if "trust_remote_code" in str(error):
        remedy = "Read that code, then set args.trust_remote_code=true."
        return JobError("remote_code_not_trusted", f"{path} brings its own Python code.", remedy)
    if isinstance(error, OSError):
        cause = f"{path} cannot be opened: {first_line(error)}"
        return JobError("missing_model", cause, "Check args.hf_model_id and the network.")
    if "Dataclass" in type(error).__name__:  # of huggingface_hub, raised by the checks of transformers' classes
        cause = f"{path}: no model is like its config.json: {str(error).strip().splitlines()[-1].strip()}"
        return JobError("impossible_config", cause, "Copy the model's config.json again.")
    if "Unrecognized configuration class" in str(error):
        cause = f"{path} is of a kind of which transformers builds no causal language model."
        return JobError("unsupported_model", cause, "Name a causal language model.")
    cause = f"{path} cannot be built: {first_line(error)}"
    remedy = "Install that." if isinstance(error, ImportError) else "A newer transformers may know this model."
    return JobError("unknown_model", cause, remedy)


def without_weights(path: str, trust_remote_code: bool, *, buffers: bool = False) -> Any:
    """The model on the meta device, from its configuration alone: no weight is read. Raises JobError as load_model.

    `buffers`: what is computed and not read (rotary frequencies) is there.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = _config(path, trust_remote_code)
    try:
        with init_empty_weights(include_buffers=False) if buffers else torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # each architecture has errors of its own; all mean that it cannot be built
        raise _as_job_error(path, error) from error


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer that a format would quantize.

    Experts that Transformers keeps as one 3-D tensor count as the linear layers they are. Output heads are left out,
    as ModelOpt leaves them unquantized, and so is what has a quantizer that is off.
    """
    from torch import nn

    head = model.get_output_embeddings()
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        left = module is head or type(module) is not nn.Linear  # such as a router with a class of its own
        if isinstance(module, nn.Linear) and getattr(getattr(module, "weight_quantizer", None), "is_enabled", not left):
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

    remedy = "Put tokenizer.json and tokenizer_config.json beside the weights."
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # the library below raises Exception itself for files that it cannot read
        raise JobError("missing_tokenizer", f"{path} has no usable tokenizer: {first_line(error)}", remedy) from error
    # Transformers answers a folder without tokenizer files with an empty tokenizer of the model's class.
    if not len(tokenizer) or not tokenizer("tokenizer check")["input_ids"]:
        raise JobError("missing_tokenizer", f"{path} has no tokenizer files.", remedy)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(path: str, *, dtype: str, device: str, trust_remote_code: bool) -> LoadedModel:
    """Load the whole model onto one device in `dtype`, in evaluation mode, from safetensors only.

    Raises JobError: missing_model, damaged_weights, unsafe_weights, remote_code_not_trusted, missing_tokenizer,
    already_quantized, unsupported_model, weights_do_not_match, weights_not_finite, no_cuda.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    place = pick_device(device)
    config = _config(path, trust_remote_code)
    if Path(path).is_dir():
        _refuse(path, weights_problem(Path(path)))
    tokenizer = load_tokenizer(path, trust_remote_code)
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are told with the others
        )
    except SafetensorError as error:
        raise damaged(path, error) from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _as_job_error(path, error) from error
    _check_weights(path, model, told)
    if hasattr(config, "quantization_config"):
        # Transformers would quantize again what it saves; ModelOpt's state does not know those tensors.
        vars(model).pop("_weight_conversions", None)
    return LoadedModel(model=model.to(place).eval(), tokenizer=tokenizer, device=place)


def damaged(path: str, error: Exception) -> JobError:
    """What to raise where safetensors cannot read a model's file."""
    return JobError("damaged_weights", f"{path}: a weight file cannot be read: {error}.", "Copy it again.")


def _check_weights(path: str, model: Any, told: dict[str, Any]) -> None:
    """Every tensor of the model came from the files, every tensor of the files went into it, and all are numbers.

    What is tied, computed or known to be left over is not told by transformers.
    """
    mismatched = [f"{name} {list(found)} for {list(wanted)}" for name, found, wanted in told["mismatched_keys"]]
    missing, left_over = told["missing_keys"], told["unexpected_keys"]
    refuse_other_weights(path, missing=missing, left_over=left_over, misshapen=mismatched)
    check_head(path, model)
    broken = [name for name, each in model.named_parameters() if not is_finite(each.detach())]
    refuse_not_finite(path, broken, model.dtype)


def refuse_other_weights(
    path: str,
    *,
    missing: Collection[str] = (),
    left_over: Collection[str] = (),
    misshapen: Collection[str] = (),
    empty: Collection[str] = (),
) -> None:
    """Raise JobError('weights_do_not_match') for tensors of these names, if there are any."""
    wrong = {
        "not in the files": missing,
        "in the files, but not in the model": left_over,
        "of another shape than config.json says": misshapen,
        "in the files, but without a single weight": empty,
    }
    said = [f"{_first(names)} {(len(names) > 1 and 'are') or 'is'} {what}" for what, names in wrong.items() if names]
    if said:
        remedy = "Copy the weights again, or name the config.json that belongs to them."
        raise JobError("weights_do_not_match", f"{path}: {'; '.join(said)}.", remedy)


def is_finite(weights: "torch.Tensor") -> bool:
    """Whether every number is one: without a copy."""
    import torch

    return not weights.numel() or bool(torch.stack(torch.aminmax(weights)).isfinite().all())


def refuse_not_finite(path: str, broken: Collection[str], dtype: "torch.dtype") -> None:
    """Raise JobError('weights_not_finite') for tensors of that name, if there are any."""
    if broken:
        cause = f"{path}: {_first(broken)} {(len(broken) > 1 and 'hold') or 'holds'} NaN or infinity in {dtype}."
        remedy = "Copy the weights again; where they are finite in their own type, load them in that: args.dtype."
        raise JobError("weights_not_finite", cause, remedy)


def refuse_numbers(logits: "torch.Tensor", dtype: str) -> None:
    """Raise JobError('weights_not_finite') where a model computes what would become scales and is no number."""
    if not is_finite(logits):
        cause = f"The model computes NaN or infinity in {dtype}, from weights that are finite."
        raise JobError("weights_not_finite", cause, "Set args.dtype=bfloat16 or float32, whose range is wider.")


def check_head(path: str, model: Any) -> None:
    """A head that config.json calls tied is the embedding to every loader, whatever the files hold beside it.

    Raises JobError('weights_do_not_match').
    """
    import torch

    if not getattr(model, "_tied_weights_keys", None) or not model.config.get_text_config().tie_word_embeddings:
        return
    head, embedding = (
        getattr(one, "weight", None) for one in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if head is None or embedding is None or head.shape != embedding.shape or head.data_ptr() == embedding.data_ptr():
        return
    if not torch.equal(head, embedding):
        cause = f"{path}: config.json says that the output head is the embedding, and the files hold another head."
        raise JobError("weights_do_not_match", cause, "Set tie_word_embeddings to false in its config.json.")


def _first(names: Iterable[str]) -> str:
    """The first three of some names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
