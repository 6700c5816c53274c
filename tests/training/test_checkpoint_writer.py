"""What is written beside the states survives a trainer that does not know yet that it was replaced."""

from __future__ import annotations

from vidray.storage.store import Store
from vidray.training.loop.checkpoint_writer import overwrite


class ContestedStore(Store):
    """Another writer puts its object right before ours, once."""

    contested = False

    def create(self, path: str, data: bytes) -> None:
        if not self.contested:
            self.contested = True
            super().create(path, b"theirs")
        super().create(path, data)


def test_an_object_of_another_writer_in_the_middle_of_an_overwrite_is_overwritten_too(tmp_path):
    store = ContestedStore(str(tmp_path))
    overwrite(store, "metrics.jsonl", b"ours")
    assert store.contested
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"ours"
