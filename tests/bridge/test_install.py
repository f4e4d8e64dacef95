"""What `make bridge` leaves out is what the installed releases ask for, and nothing that they stopped asking for."""

from importlib import metadata

from configs import CONFIGS
from scripts.engines.bridge.quiet_nemo import GROUP
from scripts.engines.cpu_runtime import RELEASES

LEFT_OUT = CONFIGS / "bridge-without-cuda.txt"
PARENTS = ("megatron-bridge", "megatron-core", "megatron-energon")


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def left_out() -> set[str]:
    lines = LEFT_OUT.read_text(encoding="utf-8").splitlines()
    return {canonical(line.partition(";")[0]) for line in lines if line and not line.startswith("#")}


def asked_for() -> set[str]:
    from packaging.requirements import Requirement

    rows = [Requirement(row).name for parent in PARENTS for row in metadata.requires(parent) or ()]
    return set(map(canonical, rows))


def test_all_of_it_is_asked_for() -> None:
    assert left_out() and left_out() <= asked_for() | {"flashinfer-cubin"}


def test_what_is_not_installed_is_left_out_with_a_reason() -> None:
    """Each line stands under a comment."""
    lines = [line for line in LEFT_OUT.read_text(encoding="utf-8").splitlines() if line]
    assert lines[0].startswith("#") and sum(line.startswith("#") for line in lines) > 6
    here = {canonical(one.metadata["Name"]) for one in metadata.distributions()}
    assert not left_out() & here


def test_the_runtime_knows_what_is_installed() -> None:
    for package, begins in RELEASES.items():
        assert metadata.version(package).startswith(begins)


def test_nemo_does_not_import_megatron_bridge() -> None:
    assert [one.dist.name for one in metadata.entry_points(group=GROUP) if one.dist] == ["modelopt-recipes"]
