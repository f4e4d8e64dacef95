import pytest

from scripts.args.sizes import bytes_of


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 1 << 34),
        ("24 GB", 24 * 10**9),
        ("1.5gib", 3 << 29),
        ("800MiB", 800 << 20),
        ("auto", None),
        (None, None),
    ],
)
def test_sizes_as_people_write_them(text: str | None, size: int | None) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["16", "much", "0GiB", "-1GiB", "1GiB each", "", "1e3GB", "16Gib/s"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="no size of memory"):
        bytes_of(text)
