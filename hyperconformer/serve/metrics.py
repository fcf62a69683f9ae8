"""What Prometheus may ask."""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

# Where several processes share their values; prometheus_client reads it when imported.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
DELAYS_S = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
FILES_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """Counters of one server; several processes add theirs up."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        self.streams = Gauge(
            "hyperconformer_streams",
            "Live streams",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.audio_s = Counter(
            "hyperconformer_audio_seconds",
            "Audio that was recognised",
            ["endpoint"],
            registry=registry,
        )
        self.refused = Counter(
            "hyperconformer_refused",
            "Requests and streams that ended in an error",
            ["code"],
            registry=registry,
        )
        self.delay_s = Histogram(
            "hyperconformer_chunk_delay_seconds",
            "From the last sample of a chunk to its words",
            buckets=DELAYS_S,
            registry=registry,
        )
        self.batch = Histogram(
            "hyperconformer_batch_streams",
            "Streams that were advanced together",
            buckets=BATCHES,
            registry=registry,
        )
        self.file_s = Histogram(
            "hyperconformer_file_seconds",
            "Time that an uploaded file took, waiting included",
            buckets=FILES_S,
            registry=registry,
        )

    def page(self):
        """The values in Prometheus' text form, and its content type."""
        registry = self.registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST
