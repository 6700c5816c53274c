"""Fine-tune video classifiers data-parallel, and score whole buckets of videos into Parquet.

    import vidray

    vidray.train("videos/", "MCG-NJU/videomae-base", "my-model")
    vidray.score("s3://bucket/videos/", "my-model", "scores").read()
    vidray.load("my-model")("clip.mp4")

Nothing heavy is imported until one of these is called.
"""

from typing import TYPE_CHECKING, Any

from vidray.models.registration import register, register_when_needed

if TYPE_CHECKING:
    from vidray.api import ScoreResult, evaluate, load, read, score, train
    from vidray.scoring.classifier import Classifier

__version__ = "0.1.0"
__all__ = ["Classifier", "ScoreResult", "evaluate", "load", "read", "register", "score", "train"]

register_when_needed()


def __getattr__(name: str) -> Any:
    if name == "Classifier":
        from vidray.scoring.classifier import Classifier

        return Classifier
    if name in __all__:
        from vidray import api

        return getattr(api, name)
    raise AttributeError(f"module 'vidray' has no attribute {name!r}")
