"""What several benchmarks share: generated embeddings, the peak of memory, and the speed of the matrix product."""

import threading
import time

import numpy as np
import psutil  # type: ignore[import-untyped]

PART = 32_768


def long_tailed(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows in long-tailed classes of 10 to 2000 rows, 50 on average, classes around superclasses: float32, and labels.

    The sizes' distribution does not depend on n: a larger set has more classes, not larger ones. (With Zipf weights over
    all classes the largest blobs grow with n; nothing divides a Gaussian blob of 25,000 rows, and any index must compare
    most of it.)
    """
    rng = np.random.default_rng(seed)
    classes, supers = max(2, n // 50), max(2, n // 2000)
    weight = np.minimum(10 * (1 + rng.pareto(1.2, classes)), 2000)
    label_N = rng.choice(classes, size=n, p=weight / weight.sum())

    def noise(rows: int, scale: float) -> np.ndarray:
        drawn: np.ndarray = rng.standard_normal((rows, dim), dtype=np.float32)
        return drawn * np.float32(scale / np.sqrt(dim))

    super_SD = noise(supers, 1.0)
    centre_CD = super_SD[rng.integers(supers, size=classes)] + noise(classes, 0.8)
    centre_CD /= np.linalg.norm(centre_CD, axis=1, keepdims=True)
    x_ND = np.empty((n, dim), np.float32)
    for at in range(0, n, PART):
        rows = slice(at, min(n, at + PART))
        x_ND[rows] = centre_CD[label_N[rows]] + noise(rows.stop - at, 0.9)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND, label_N


def sgemm_peak() -> float:
    """FLOP/s of a large float32 product on all cores: the best of five."""
    a = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    return 2 * 4096**3 / min(times)


class Peak:
    """Peak of private memory over this process's children and their shared object store.

    ``bytes`` is above what there was at the start, ``total_bytes`` with that and with this process itself, ``parts`` what
    that consists of, ``seconds`` when it was.
    """

    def __enter__(self) -> "Peak":
        self._stop = threading.Event()
        self._base = self._now()
        self.bytes = 0
        self.total_bytes = 0
        self.parts: dict[str, int] = {}
        self.seconds = 0.0
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            now = self._now()
            self.bytes = max(self.bytes, now - self._base)
            memory = psutil.Process().memory_info()
            mine = memory.rss - memory.shared
            if now + mine > self.total_bytes:
                self.total_bytes = now + mine
                self.seconds = time.perf_counter() - self._began
                store = psutil.disk_usage("/dev/shm").used
                self.parts = {"object_store": store, "driver": mine, "other_processes": max(0, now - store)}

    @staticmethod
    def _now() -> int:
        total = 0
        for process in psutil.Process().children(recursive=True):
            try:
                memory = process.memory_info()
                total += memory.rss - memory.shared
            except psutil.NoSuchProcess:
                continue
        return int(total + psutil.disk_usage("/dev/shm").used)
