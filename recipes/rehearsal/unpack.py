"""An export as a plain checkpoint: its weights by the layout of its files, for what cannot load the packed ones.

    python -m recipes.rehearsal.unpack EXPORT OUTPUT

What inputs would be rounded to is not in it: scores of it are no scores of the format.
"""

import shutil
import sys
from pathlib import Path

from scripts.checkpoints import look
from scripts.checkpoints.documents import read_json
from scripts.engines.hf.verify import SCALES, Export, dequantize
from scripts.formats import FORMATS
from scripts.run.files import write_json
from scripts.run.problems import JobError

#: What says of a folder that its weights are packed.
_SAID = ("hf_quant_config.json", "config.json")


def unpack(folder: Path, output: Path) -> None:
    """Write the plain form of an export, in bfloat16, to a folder that is not there yet. Raises JobError."""
    import torch
    from safetensors.torch import save_file

    export, facts = Export(folder), FORMATS.get(look(folder).quantization or "")
    if facts is None:
        cause = f"{folder} is in no single format that is known here."
        raise JobError("unscorable_checkpoint", cause, "Score it where vLLM is.")
    plain = {}
    for name in export.header:
        module, _, last = name.rpartition(".")
        if last == "weight" and f"{module}.weight_scale" in export.header:
            tensors = export.of_module(module)
            weight = dequantize(facts, tensors)
            if (given := tensors.get("pre_quant_scale")) is not None:
                weight = weight * given.float()
            plain[name] = weight.to(torch.bfloat16).contiguous()
        elif last not in SCALES:
            plain[name] = export.tensor(name)
    aside = output.with_name(f".{output.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and "safetensors" not in file.name and file.name not in _SAID:
            shutil.copyfile(file, aside / file.name)
    config = {key: value for key, value in read_json(folder / "config.json").items() if key != "quantization_config"}
    write_json(aside / "config.json", config)
    save_file(plain, aside / "model.safetensors", metadata={"format": "pt"})
    aside.rename(output)


if __name__ == "__main__":
    try:
        unpack(Path(sys.argv[1]), Path(sys.argv[2]))
    except JobError as error:
        sys.exit(str(error))
