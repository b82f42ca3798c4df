"""What the server counts and times, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECOND_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """A registry of its own, so that several servers in one process do not share counts. waiting: images accepted and not answered."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("imgrec_requests", "Requests by path and status.", ["path", "status"], registry=self._registry)
        self.seconds = Histogram(
            "imgrec_predict_seconds", "From the head of a request to its answer.", buckets=SECOND_BUCKETS, registry=self._registry
        )
        self.images = Counter("imgrec_images", "Images that were answered.", registry=self._registry)
        self.batches = Histogram("imgrec_batch_images", "Images in a batch.", buckets=SIZE_BUCKETS, registry=self._registry)
        self.network = Histogram(
            "imgrec_network_seconds", "Of a batch in the network.", buckets=SECOND_BUCKETS, registry=self._registry
        )
        self.reloads = Counter("imgrec_reloads", "Reloads of the checkpoint by result.", ["result"], registry=self._registry)
        Gauge("imgrec_waiting_images", "Images accepted and not yet answered.", registry=self._registry).set_function(waiting)
        ProcessCollector(registry=self._registry)  # memory, processor time and open files: after the server's own figures

    def observe_answer(self, images: int, seconds: float) -> None:
        """All images of a request have their predictions."""
        self.images.inc(images)
        self.seconds.observe(seconds)

    def observe_batch(self, images: int, seconds: float) -> None:
        """A batch went through the network. Called on the event loop."""
        self.batches.observe(images)
        self.network.observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
