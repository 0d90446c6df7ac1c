"""`supervisor.Publisher`, for programs that publish: the public names of `supervisor.broker.publisher`."""

from supervisor.broker.publisher import Published, PublishedBatch, Publisher

__all__ = ["Published", "PublishedBatch", "Publisher"]
