"""The families of video classifiers. ``register()`` makes Transformers know those that vidray adds."""

from vidray.models.registration import register

__all__ = ["register"]
