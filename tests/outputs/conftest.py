"""The S3 server for datasets in buckets."""

from tests.seaweed import seaweed

__all__ = ["seaweed"]
