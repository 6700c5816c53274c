"""Fine-tune video classifiers data-parallel, and score whole buckets of videos into Parquet."""

from vidray.models.registration import register_when_needed

__version__ = "0.1.0"

register_when_needed()
