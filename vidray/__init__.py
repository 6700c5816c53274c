"""Fine-tune video classifiers data-parallel, and score whole buckets of videos into Parquet."""

__version__ = "0.1.0"
